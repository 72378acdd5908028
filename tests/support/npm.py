"""Packages from npm that tests need, in addition to the environments of `support.venvs`."""

import subprocess
from pathlib import Path

from support.tools import tool
from support.venvs import CACHE, NotInstalled, alone


def package(requirement: str) -> Path:
    """Return the directory of `NAME@VERSION`. It is installed once."""
    directory = CACHE / requirement
    found = directory / "node_modules" / requirement.rpartition("@")[0]
    with alone():
        if not found.exists():
            install = [tool("npm"), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(directory), requirement]
            done = subprocess.run(install, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotInstalled(f"{requirement} cannot be installed: {done.stderr[-300:]}")
    return found
