"""Programs and libraries from PyPI that tests need, each in its own environment. They are not in the lock."""

import fcntl
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"

FLOWER = "flwr==1.42.0", "scikit-learn==1.9.1"
SKLEARN = ("scikit-learn==1.9.1",)
TORCH = "torch==2.15.0", "scikit-learn==1.9.1", "keras==3.15.1"
XAIN_SDK = "xain-sdk==0.8.0"
"""As released by its authors."""


def required(requirement: str, *more: str, large: bool = False) -> str:
    """Return `python`. Without the environment, skip the test, or fail in CI. `large`: only CI makes the environment."""
    if large and not os.environ.get("CI") and not made(requirement):
        pytest.skip(f"{requirement} is not installed in .cache; CI=true installs it")
    try:
        return python(requirement, *more)
    except NotInstalled as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def environ(*paths: str, **variables: str) -> dict[str, str]:
    """Return variables that let this Python find fedround, its dependencies, and these `paths` of the repository."""
    found = [*(str(ROOT / path) for path in ("service", *paths)), sysconfig.get_paths()["purelib"]]
    return os.environ | {"PYTHONPATH": os.pathsep.join(found)} | variables


class NotInstalled(Exception):
    """The environment cannot be created."""


@contextmanager
def alone(name: str = "lock") -> Iterator[None]:
    """Hold a lock. Another test that needs the same environment waits until it is installed."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _directory(requirement: str) -> Path:
    return CACHE / f"{requirement.replace('==', '-')}-python-{sys.version_info[0]}.{sys.version_info[1]}"


def made(requirement: str) -> bool:
    """Return whether the environment exists."""
    return (_directory(requirement) / "ready").exists()


def python(requirement: str, *more: str) -> str:
    """Return the Python of the environment that has `requirement`, `NAME==VERSION`, and `more`. It is made once."""
    directory = _directory(requirement)
    executable = str(directory / "bin" / "python")
    with alone(f"{directory.name}.lock"):
        if not (directory / "ready").exists():
            venv.create(directory, with_pip=True, clear=True)
            install = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement, *more]
            done = subprocess.run(install, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotInstalled(f"{requirement} cannot be installed: {done.stderr[-300:]}")
            (directory / "ready").touch()
    return executable


def program(requirement: str, name: str) -> str:
    """Return the path of a program in that environment."""
    return str(Path(python(requirement)).with_name(name))
