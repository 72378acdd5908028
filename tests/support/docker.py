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
    """A command failed."""


def docker(*arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, program: str = "docker") -> str:
    """Return both output streams of a command. Raises `Failed`."""
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
    # The classic builder, which every engine has. Its output is read below.
    return docker("build", "--tag", tag, *arguments, ".", cwd=context, env={"DOCKER_BUILDKIT": "0"})


@cache
def built() -> str:
    """Return the image, built once for all tests."""
    build()
    return IMAGE


def watchers(directory: Path) -> dict[str, str]:
    """Build images of ours in the place of those that Compose would pull, and return the variables that name them.

    They run the programs of this machine. There is no Grafana: its container does nothing.
    """
    programs = {"prometheus": "prometheus", "prometheus-alertmanager": "alertmanager", "jaeger": "traces"}
    templates = Path("/usr/share/prometheus/alertmanager")  # Debian's Alertmanager needs this to start.
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
    """A directory with all files of the image, for tests that change them."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, directory)
    for name in ("requirements", "service"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory
