"""`fedround new`: the projects run as their README describes, and a refused directory stays as it was."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from fedround.project import LONGEST, MODELS, create, project_name
from support import venvs
from support.processes import fedround, running
from support.tools import tool
from support.venvs import ROOT

TEMPLATES = ROOT / "service" / "fedround" / "project"
COORDINATOR, MODEL = "http://localhost:8081", "http://localhost:9082"
FILES = {
    *(".dockerignore", "Dockerfile", "README.md", "docker-compose.yml", "participant.py", "pytest.ini", "requirements.txt"),
    *("test_participant.py", "values.yaml"),
}


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def commands(readme: str, section: str) -> list[str]:
    """Return the commands in a section of the README."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    found: list[str] = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    return found


def on_the_path(directory: Path, python: str) -> str:
    """Return a PATH with the commands of this Python."""
    directory.mkdir()
    for name in ("fedround", "pytest"):
        (directory / name).write_text(f'#!/bin/sh\nexec "{python}" -m {name} "$@"\n')
        (directory / name).chmod(0o755)
    return f"{directory}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("library", MODELS)
@pytest.mark.timeout(1500)  # PyTorch may have to be installed first
def test_a_project_passes_its_test_and_trains_as_in_its_readme(library: str, tmp_path: Path) -> None:
    python = sys.executable if library == "numpy" else venvs.required(*venvs.TORCH, large=True)
    environ = venvs.environ(KERAS_BACKEND="torch", PATH=on_the_path(tmp_path / "bin", python), PARTICIPANT_OPS_BIND="127.0.0.1")
    project = tmp_path / "silo"

    def run(*lines: str) -> None:
        script = "\n".join(["set -e", *lines])
        done = subprocess.run(
            ["sh", "-c", script], cwd=project, env=environ, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr

    created = fedround("new", str(project), *([] if library == "numpy" else [f"--{library}"]))
    assert (created.returncode, created.stderr) == (0, "")
    readme = (project / "README.md").read_text()
    testing = commands(readme, "Test")
    assert re.findall("^  (.*)$", created.stdout, re.MULTILINE) == [f"cd {project}", *testing]
    run(*(line for line in testing if not line.startswith("pip ")))

    if library == "keras":
        return  # The commands are the same as in PyTorch's README, and four more starts of Keras take most of a minute.

    starting, *participating = commands(readme, "Run on this machine")
    plan = {name.upper().replace("-", "_"): value for name, value in re.findall(r"--(\S+) (\S+)", starting)}
    with running("platform", **plan) as platform:
        urls = {COORDINATOR: platform.url("COORDINATOR_PORT"), MODEL: platform.url("AGGREGATOR_OPS_PORT")}
        run(*(re.sub("|".join(urls), lambda url: urls[url[0]], line) for line in participating))
        rounds = platform.status("COORDINATOR_OPS_PORT")["last_rounds"]
    assert [round["counted"] for round in rounds] == [3] * 20
    assert rounds[-1]["evaluation"]["loss"] < rounds[0]["evaluation"]["loss"] / 2

    source = (project / "participant.py").read_text()
    (loading,) = re.findall("^Load the trained model: (.*)$", source, re.MULTILINE)
    load = [
        "import numpy, safetensors.numpy",
        "import safetensors.torch" if library == "torch" else "",
        "from participant import *",
    ]
    (project / "load.py").write_text("\n".join([*load, loading]))
    run(f"'{python}' load.py")
    if library == "numpy":
        assert np.load(project / "model.npy") == pytest.approx([2.0, -1.0, 0.5, 3.0], abs=0.1)


@pytest.mark.parametrize("library", MODELS)
def test_a_project_has_the_same_files_for_each_library(library: str, tmp_path: Path) -> None:
    create(tmp_path / "silo", library)
    assert names(tmp_path / "silo") == FILES
    source = (tmp_path / "silo" / "participant.py").read_text()
    assert source.count("YOUR DATA") == 1
    assert len(source.splitlines()) <= 70
    texts = [path.read_text() for path in (tmp_path / "silo").iterdir()]
    assert not [text for text in texts if "project-name" in text]
    assert [text for text in texts if f"-o {MODELS[library]}" in text]


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("silo", "silo"),
        ("a/My_Silo 2", "my-silo-2"),
        ("Größe", "grosse"),
        ("2025", "project-2025"),
        ("日本", "project"),
        ("a/b/..", "a"),
        ("a/" + "ab-" * 30, ("ab-" * 30)[:LONGEST]),
    ],
)
def test_the_name_of_the_directory_becomes_a_name_for_images_and_releases(directory: str, name: str) -> None:
    assert project_name(Path("/") / directory) == name


def test_an_empty_directory_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create(Path(), "numpy")
    assert names(tmp_path) == FILES
    create(Path("a/b"), "numpy")
    assert names(tmp_path / "a" / "b") == FILES


def test_a_directory_that_is_not_empty_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "participant.py").write_text("mine")
    refused = fedround("new", str(tmp_path))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"{tmp_path} is not empty: name a directory that is empty or does not exist")
    assert names(tmp_path) == {"participant.py"}
    assert (tmp_path / "participant.py").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/silo", "new/" + "x" * 256])
def test_a_directory_that_cannot_be_created_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = fedround("new", str(tmp_path / place))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"cannot write {tmp_path / place}: ")
    assert "Traceback" not in refused.stderr
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("place", ["", "new/silo"])
def test_a_failed_write_leaves_nothing_behind(place: str, tmp_path: Path) -> None:
    """This process cannot write a file of more than 1 kB."""
    program = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-B", "-m", "fedround", "new", str(tmp_path / place)]
    failed = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "File too large; nothing was written" in failed.stderr
    assert names(tmp_path) == set()


def test_the_documentation_lists_the_commands_and_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "guides" / "new-project.md").read_text()
    creating, entering, testing = re.findall(r"^\$ (.*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    created = fedround(*creating.split()[1:])
    assert {entering, testing.removesuffix(" -q")} <= set(re.findall("^  (.*)$", created.stdout, re.MULTILINE))
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall("`(.*?)`", row)} == names(tmp_path / "my-project")


def test_two_libraries_are_a_wrong_command_line(tmp_path: Path) -> None:
    refused = fedround("new", str(tmp_path / "silo"), "--torch", "--keras")
    assert refused.returncode == 64
    assert names(tmp_path) == set()


def test_the_compose_file_uses_existing_settings(tmp_path: Path) -> None:
    create(tmp_path / "silo", "numpy")
    services = yaml.safe_load((tmp_path / "silo" / "docker-compose.yml").read_text())["services"]
    assert (services["platform"]["image"], services["participant"]["image"]) == ("fedround:0.1.0", "silo:0.1")
    assert services["participant"]["scale"] == services["platform"]["environment"]["COORDINATOR_MIN_CLIENTS"]
    known = {row.variable for kind in (ParticipantSettings, CoordinatorSettings, AggregatorSettings) for row in kind.rows()}
    image = re.findall(r"^ENV (\w+)=", (tmp_path / "silo" / "Dockerfile").read_text(), re.MULTILINE)
    assert known.issuperset({*image, *(name for service in services.values() for name in service["environment"])})


def test_helm_accepts_the_values(tmp_path: Path) -> None:
    create(tmp_path / "no", "numpy")  # YAML for false
    values = str(tmp_path / "no" / "values.yaml")
    template = [tool("helm"), "template", "no", str(ROOT / "helm" / "participant"), "--values", values]
    done = subprocess.run(template, capture_output=True, text=True, check=True)
    objects: list[Mapping[str, object]] = [found for found in yaml.safe_load_all(done.stdout) if found]
    (workload,) = [found for found in objects if found["kind"] == "StatefulSet"]
    text = yaml.safe_dump(workload)
    assert "image: no:0.1\n" in text
    assert "participant:Participant" in yaml.safe_dump(objects)
    assert "http://fl-coordinator:8081" in yaml.safe_dump(objects)


def test_the_wheel_has_every_template(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    templates = {str(path.relative_to(ROOT / "service")) for path in TEMPLATES.glob("*/*") if path.is_file()}
    assert len(templates) > len(MODELS) * 2
    with zipfile.ZipFile(wheel) as archive:
        assert templates <= set(archive.namelist())
        assert not [name for name in archive.namelist() if "__pycache__" in name]
