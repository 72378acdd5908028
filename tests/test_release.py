"""A release: the same commit makes the same files, on any machine and at any time."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from support import venvs
from support.tools import tool

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
CHARTS = {path.parent.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "helm").glob("*/Chart.yaml"))}
SOMEBODY = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in {"NAME": "a", "EMAIL": "a@b"}.items()}
COMMITTED = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(error and str(error))
"""

pytestmark = pytest.mark.timeout(300)  # the first test of a worker builds two releases


def git(*arguments: str, cwd: Path) -> str:
    # Ignore the user's Git configuration.
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, **SOMEBODY, **COMMITTED}
    done = subprocess.run([tool("git"), *arguments], cwd=cwd, env=os.environ | settings, capture_output=True, text=True, check=True)
    return done.stdout


def release(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(clone / "tools" / "release.py"), *arguments]
    return subprocess.run(command, cwd=clone.parent, capture_output=True, text=True, check=False)


def digests(clone: Path) -> Mapping[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((clone / "dist").iterdir())}


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clones of the working tree, committed, with a release in each, without the parts that need an engine or an index."""
    tool("helm")
    first, second = (tmp_path_factory.mktemp(name) / "fedround" for name in ("one", "another"))
    first.mkdir()
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            (first / name).write_bytes((ROOT / name).read_bytes())
    git("init", "--quiet", cwd=first)
    git("add", "--all", cwd=first)
    git("commit", "--quiet", "--message", "A release", cwd=first)
    git("clone", "--quiet", str(first), str(second), cwd=first)
    (second / "service" / "fedround" / "not_committed.py").write_text("")
    (second / "README.md").write_text("not committed")
    for clone in (first, second):
        done = release(clone, "--skip", "images", "wheels")
        assert done.returncode == 0, done.stderr
        assert ("not committed" in done.stderr) == (clone == second)
    return [first, second]


def test_two_builds_of_a_commit_are_equal(clones: list[Path]) -> None:
    first, second = map(digests, clones)
    assert first == second
    named = f"fedround-{VERSION}"
    charts = {f"{name}-{VERSION}.tgz" for name in CHARTS}
    packages = {f"{named}-py3-none-any.whl", f"{named}.tar.gz", f"{named}-requirements.txt", f"{named}.cdx.json"}
    assert set(first) == {*charts, *packages, "SHA256SUMS"}


def test_the_checksums_cover_all_files(clones: list[Path]) -> None:
    found = digests(clones[0])
    sums = (clones[0] / "dist" / "SHA256SUMS").read_text()
    assert sums == "".join(f"{digest}  {name}\n" for name, digest in found.items() if name != "SHA256SUMS")


def test_times_in_archives_are_the_time_of_the_commit(clones: list[Path]) -> None:
    epoch = int(git("log", "-1", "--format=%ct", cwd=clones[0]))
    for archive in [path for path in (clones[0] / "dist").iterdir() if path.name.endswith((".tgz", ".tar.gz"))]:
        with tarfile.open(archive) as tar:
            assert {member.mtime for member in tar} == {epoch}, archive.name


@pytest.mark.parametrize("chart", CHARTS)
def test_a_packed_chart_renders_like_its_directory(chart: str, clones: list[Path]) -> None:
    def rendered(source: Path) -> str:
        settings = ["--set", "coordinator.url=http://fl:8081"] if chart == "participant" else []
        return subprocess.run([tool("helm"), "template", "a", source, *settings], capture_output=True, text=True, check=True).stdout

    packed = rendered(clones[0] / "dist" / f"{chart}-{VERSION}.tgz")
    if parts := CHARTS[chart].get("dependencies"):  # the directory does not contain them
        assert all(f"helm.sh/chart: {part.get('alias', part['name'])}-{VERSION}\n" in packed for part in parts)
    else:
        assert packed == rendered(ROOT / "helm" / chart)


def test_the_sbom_has_each_locked_package_with_licence_and_dependents(clones: list[Path]) -> None:
    sbom = json.loads((clones[0] / "dist" / f"fedround-{VERSION}.cdx.json").read_text())
    pinned = re.findall(r"^([a-z0-9.-]+)==([^ ]+)", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    assert sorted((part["name"], part["version"]) for part in sbom["components"]) == sorted(pinned)
    assert [part["name"] for part in sbom["components"] if not part.get("licenses")] == []
    root = sbom["metadata"]["component"]
    assert (root["name"], root["version"], root["licenses"]) == ("fedround", VERSION, [{"license": {"id": "Apache-2.0"}}])
    needs = {entry["ref"]: {ref.split("@")[0] for ref in entry.get("dependsOn", ())} for entry in sbom["dependencies"]}
    assert {"pkg:pypi/httpx", "pkg:pypi/numpy", "pkg:pypi/uvicorn"} <= needs[root["bom-ref"]]
    (httpx,) = (needed for ref, needed in needs.items() if ref.startswith("pkg:pypi/httpx@"))
    assert "pkg:pypi/httpcore" in httpx
    python = venvs.required("cyclonedx-python-lib[json-validation]==11.12.0")
    done = subprocess.run([python, "-c", VALIDATE], input=json.dumps(sbom), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_program_stops_a_release_before_it_builds(
    clones: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git").symlink_to(tool("git"))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = release(clones[0], "--out", str(tmp_path / "dist"), "--skip", "images")
    assert (done.returncode, done.stderr) == (1, "helm is not installed: install it, or leave out what needs it: --skip charts\n")
    assert not (tmp_path / "dist").exists()


def test_a_directory_with_other_files_is_refused_and_unchanged(clones: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    done = release(clones[0], "--out", str(tmp_path), "--skip", "charts", "images", "packages", "wheels")
    assert done.returncode == 1
    assert "is not empty, and has no release in it: choose another directory with --out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_every_version_is_that_of_the_project() -> None:
    assert {(chart["version"], chart["appVersion"]) for chart in CHARTS.values()} == {(VERSION, VERSION)}
    pages = git("grep", "-ohE", r"fedround:[0-9][0-9.]*[0-9]", "--", ":!CHANGELOG.md", ":!tests/test_release.py", cwd=ROOT)
    assert set(pages.split()) == {f"fedround:{VERSION}"}
