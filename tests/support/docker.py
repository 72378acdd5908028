"""A real Docker Engine: commands, and the project's own image."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from support.tools import tool

ROOT = Path(__file__).parent.parent.parent
IMAGE = "fedround:0.1.0"
BASE = "python:3.13-slim-bookworm"


class Failed(Exception):
    """A command did not do what it was asked for."""


def docker(*arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, program: str = "docker") -> str:
    """What a command says, on both of its streams. Raises `Failed`."""
    command = [tool(program), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stdout[-4000:]}")
    return done.stdout


def inspect(name: str) -> Any:
    (found,) = json.loads(docker("inspect", name))
    return found


def build(context: Path = ROOT, tag: str = IMAGE, *arguments: str) -> str:
    # By the builder that every engine has, whose words are told below.
    return docker("build", "--tag", tag, *arguments, ".", cwd=context, env={"DOCKER_BUILDKIT": "0"})


@cache
def built() -> str:
    """The image, once made for all tests."""
    build()
    return IMAGE


def watchers(directory: Path) -> dict[str, str]:
    """Build images of ours in the place of those that Compose would pull, and return the variables that name them.

    They run the programs of this machine. There is no Grafana: its container does nothing.
    """
    programs = {"prometheus": "prometheus", "prometheus-alertmanager": "alertmanager", "jaeger": "traces"}
    templates = Path("/usr/share/prometheus/alertmanager")  # without which Debian's Alertmanager does not start
    for name, program in programs.items():
        context = directory / program
        (context / "templates").mkdir(parents=True)
        shutil.copy(tool(name), context / program)
        for template in templates.glob("*.tmpl"):
            shutil.copy(template, context / "templates")
        copies = f"COPY {program} /bin/{program}\nCOPY templates {templates}\nRUN mkdir /{program}\n"
        dockerfile = f'FROM {BASE}\n{copies}ENTRYPOINT ["/bin/{program}"]\n'
        (context / "Dockerfile").write_text(dockerfile)
        build(context, f"fedround-{program}:test")
    (directory / "Dockerfile").write_text(f'FROM {BASE}\nENTRYPOINT ["sleep", "infinity"]\n')
    (directory / ".dockerignore").write_text("*\n")
    build(directory, "fedround-grafana:test")
    return {f"{program.upper()}_IMAGE": f"fedround-{program}:test" for program in (*programs.values(), "grafana")}


def copy_of_the_source(directory: Path) -> Path:
    """What an image is made of, to be changed."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, directory)
    for name in ("requirements", "service"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory
