"""Programs that some tests need, and that not every machine has."""

import os
import shutil

import pytest


def tool(name: str) -> str:
    """Return the path of a program. If it is missing, skip the test; in CI, which installs all programs, fail."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    return path or pytest.skip(f"{name} is not installed")
