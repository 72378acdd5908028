"""The image of a release: equal in each build, and as its archive describes it."""

import json
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from support.docker import IMAGE, ROOT, docker, inspect
from support.tools import tool

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

pytestmark = pytest.mark.timeout(900)  # the first test builds two images from nothing


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of the image, built twice."""
    machine = docker("version", "--format", "{{.Server.Arch}}").strip()
    found = []
    for name in ("one", "another"):
        directory = tmp_path_factory.mktemp(name)
        program, others = str(ROOT / "tools" / "release.py"), ("packages", "charts", "sboms", "wheels")
        subprocess.run([sys.executable, program, "--out", str(directory), "--skip", *others], check=True)
        found.append(directory / f"fedround-{VERSION}-image-{machine}")
    return found


@pytest.fixture(scope="module")
def loaded(releases: list[Path]) -> Any:
    """The image, after the engine has loaded the archive."""
    assert f"Loaded image: fedround:{VERSION}" in docker("load", "--input", f"{releases[0]}.tar")
    return inspect(IMAGE)


def test_two_builds_of_the_image_are_equal(releases: list[Path]) -> None:
    for suffix in (".tar", ".cdx.json"):
        first, second = (path.with_name(path.name + suffix).read_bytes() for path in releases)
        assert first == second, suffix


def test_the_image_runs_and_names_its_commit(loaded: Any) -> None:
    assert VERSION in docker("run", "--rm", IMAGE, "--version")
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in loaded["Config"]["Labels"].items()}
    revision = subprocess.run(
        [tool("git"), "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (labels["version"], labels["revision"], labels["licenses"]) == (VERSION, revision, "Apache-2.0")
    assert (loaded["Config"]["User"], loaded["Config"]["Healthcheck"]["Test"]) == (
        "65532:65532",
        ["CMD", "fedround", "healthcheck"],
    )


def test_the_archive_is_an_oci_layout_with_the_digests_that_it_names(releases: list[Path]) -> None:
    with tarfile.open(f"{releases[0]}.tar") as tar:

        def read(name: str) -> Any:
            content = tar.extractfile(name)
            assert content is not None
            return json.load(content)

        (entry,) = read("index.json")["manifests"]
        assert entry["annotations"]["org.opencontainers.image.ref.name"] == VERSION
        manifest = read(f"blobs/{entry['digest'].replace(':', '/')}")
        sizes = {member.name: member.size for member in tar}
        for blob in (entry, manifest["config"], *manifest["layers"]):
            assert sizes[f"blobs/{blob['digest'].replace(':', '/')}"] == blob["size"]
        assert len(read(f"blobs/{manifest['config']['digest'].replace(':', '/')}")["rootfs"]["diff_ids"]) == len(manifest["layers"])


def test_the_sbom_lists_the_packages_of_the_system_and_of_python(releases: list[Path], loaded: Any) -> None:
    sbom = json.loads(releases[0].with_name(releases[0].name + ".cdx.json").read_text())
    named = {(part["purl"].split("/")[0], part["name"], part["version"]) for part in sbom["components"]}
    system = docker("run", "--rm", "--entrypoint", "dpkg-query", IMAGE, "--show", "--showformat=${Package} ${Version}\n")
    assert {part[1:] for part in named if part[0] == "pkg:deb"} == {tuple(line.split()) for line in system.splitlines()}
    code = "import importlib.metadata as m; [print(d.name.lower().replace('_', '-'), d.version) for d in m.distributions()]"
    installed = docker("run", "--rm", "--entrypoint", "/opt/fedround/bin/python", IMAGE, "-c", code)
    assert {part[1:] for part in named if part[0] == "pkg:pypi"} | {("fedround", VERSION)} == {
        tuple(line.split()) for line in installed.splitlines()
    }
