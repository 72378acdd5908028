"""Programs that some tests need, and that not every machine has."""

import os
import shutil

import pytest


def tool(name: str) -> str:
    """Where the program is. Without it the test is skipped; in CI, which installs all of them, it fails."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    return path or pytest.skip(f"{name} is not installed")
