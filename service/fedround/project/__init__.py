"""`fedround new`: create a project with a participant from the templates in this directory.

`common/` has the files of every project. Each other directory has the files for one library.
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

from fedround.errors import FedroundError

MODELS: Mapping[str, str] = {
    "numpy": "model.npy",
    "torch": "model.safetensors",
    "keras": "model.safetensors",
    "sklearn": "model.safetensors",
}
"""Name of the trained model's file, by library. A model with one array is an .npy file."""
NAME, MODEL = "project-name", "model.safetensors"
"""Placeholders in the templates."""
LONGEST = 40
"""Maximum characters of a project's name: a Helm release's name is part of longer names, of up to 63 characters."""


def create(directory: Path, library: str) -> str:
    """Write a project, and return the next steps for the user.

    Args:
        directory: A directory that is empty or does not exist. Its name becomes the project's name.
        library: A key of `MODELS`.

    Raises:
        FedroundError: The directory is not empty, or cannot be written. In this case no file remains.
    """
    words = {NAME: project_name(directory), MODEL: MODELS[library]}
    texts = {name: _replaced(text, words) for part in ("common", library) for name, text in _templates(part).items()}
    try:
        _write(directory, texts)
    except OSError as error:
        raise FedroundError(f"cannot write {error.filename or directory}: {error.strerror}; nothing was written") from error
    steps = [f"cd {shlex.quote(str(directory))}", "pip install -r requirements.txt pytest", "pytest"]
    lines = [f"created {directory}: {', '.join(sorted(texts))}", "next:", *(f"  {step}" for step in steps)]
    return "\n".join([*lines, "then put your data into participant.py; README.md shows how to run it"])


def project_name(directory: Path) -> str:
    """Return a directory's name as a valid name of images and Helm releases: a letter, then a-z, 0-9 and single hyphens."""
    name = Path(os.path.normpath(directory.absolute())).name  # of `.` and `..` too
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    name = re.sub("[^a-z0-9]+", "-", plain).strip("-")
    if not name[:1].isalpha():
        name = f"project-{name}"
    return name[:LONGEST].strip("-")


def _templates(part: str) -> dict[str, str]:
    """Return the files of a directory of templates. Directories are skipped: an installation may have compiled files there."""
    found = files(__package__).joinpath(part).iterdir()
    return {file.name: file.read_text(encoding="utf-8") for file in found if file.is_file()}


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for word, replacement in words.items():
        text = text.replace(word, replacement)
    return text


def _write(directory: Path, texts: Mapping[str, str]) -> None:
    """Write all files, or none. Raises `OSError`, or `FedroundError` if the directory is not empty."""
    with ExitStack() as undo:
        if not directory.exists():
            for path in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
                path.mkdir()
                undo.callback(path.rmdir)
        elif any(directory.iterdir()):
            raise FedroundError(f"{directory} is not empty: name a directory that is empty or does not exist; nothing was written")
        for name, text in texts.items():
            with (directory / name).open("x", encoding="utf-8") as file:
                undo.callback((directory / name).unlink)
                file.write(text)
        undo.pop_all()
