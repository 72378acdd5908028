"""The READMEs of the examples that need a library work as written."""

from pathlib import Path

import pytest

from support import venvs
from support.pages import PAGES, ROOT, blocks, session

BROUGHT = {"scikit-learn": venvs.FLOWER, "Flower": venvs.FLOWER, "PyTorch": venvs.TORCH}
READMES = [(page, need) for page in PAGES for need in BROUGHT if any(need in block.needs for block in blocks(page))]


def environment(directory: Path, python: str) -> Path:
    """Create the result of `python3 -m venv` and `pip install`, with the libraries of another Python."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    for name, command in {"python": "", "fedround": "-m fedround"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{python}" {command} "$@"\n')
        (programs / name).chmod(0o755)
    return directory


@pytest.mark.timeout(1500)  # PyTorch may have to be installed
@pytest.mark.parametrize(("page", "need"), READMES, ids=[str(page.relative_to(ROOT)) for page, _ in READMES])
def test_the_commands_of_a_readme_run(page: Path, need: str, tmp_path: Path) -> None:
    python = venvs.required(*BROUGHT[need], large=need == "PyTorch")
    made = environment(tmp_path / "environment", python)
    variables = venvs.environ()
    variables["PATH"] = f"{made / 'bin'}:{variables['PATH']}"
    with session(page, tmp_path, [need], variables, made) as reader:
        for block in blocks(page):
            reader.run(block)
