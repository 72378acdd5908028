"""`fedround new`: write a project with a participant, from the templates in this directory.

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
"""Name of the file for the trained model, by library. A model that is one array is an .npy file."""
NAME, MODEL = "project-name", "model.safetensors"
"""Words that the templates have in place of the project's own."""
LONGEST = 40
"""Characters of a project's name: as a release's name it becomes part of longer names, of up to 63 characters."""


def create(directory: Path, library: str) -> str:
    """Write a project. Return what to do next, for the user.

    Args:
        directory: Empty or not there. Its name becomes the project's name.
        library: A key of `MODELS`.

    Raises:
        FedroundError: The directory is not empty, or cannot be written. Nothing is left behind then.
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
    """Return the name of a directory as images and Helm releases may be called: a-z, 0-9 and single hyphens, first a letter."""
    name = Path(os.path.normpath(directory.absolute())).name  # of `.` and `..` too
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    name = re.sub("[^a-z0-9]+", "-", plain).strip("-")
    if not name[:1].isalpha():
        name = f"project-{name}"
    return name[:LONGEST].strip("-")


def _templates(part: str) -> dict[str, str]:
    """Return the files of a directory of templates. An installation may have put compiled files beside them, in a directory."""
    found = files(__package__).joinpath(part).iterdir()
    return {file.name: file.read_text(encoding="utf-8") for file in found if file.is_file()}


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for word, replacement in words.items():
        text = text.replace(word, replacement)
    return text


def _write(directory: Path, texts: Mapping[str, str]) -> None:
    """Write all files, or none. Raises `OSError`, and `FedroundError` where the directory is not empty."""
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
