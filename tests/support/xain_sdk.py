"""The real xain-sdk 0.8.0, as its authors released it, in an environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

CACHE = Path(__file__).parent.parent.parent / ".cache"


class NotInstalled(Exception):
    """The environment cannot be made."""


def python() -> str:
    """The Python of that environment, which is made once."""
    directory = CACHE / f"xain-sdk-0.8.0-python-{sys.version_info[0]}.{sys.version_info[1]}"
    executable = str(directory / "bin" / "python")
    if not (directory / "ready").exists():
        venv.create(directory, with_pip=True, clear=True)
        install = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "xain-sdk==0.8.0"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled(f"xain-sdk 0.8.0 cannot be installed: {done.stderr[-300:]}")
        (directory / "ready").touch()
    return executable
