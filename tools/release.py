"""`make release`: write all files of a release to dist/, from the commit that is checked out.

The same commit gives the same bytes, with the same versions of Python, helm and the base image. What was not committed is left out.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

import archives
import sbom

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)] + ["manylinux2014_x86_64"]
"""Platforms of the wheelhouse, the newest first. pip downloads a wheel that fits any of them."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class Problem(Exception):
    """The reason why a release failed, and what to do."""


class Release:
    """One release, in an empty directory `scratch`: `source` is the tree of the commit, `out` has the files."""

    def __init__(self, scratch: Path) -> None:
        self.out, self.scratch, self.source = scratch / "out", scratch, scratch / "source"
        self.out.mkdir()
        self.revision = run("git", "rev-parse", "HEAD").strip()
        self.epoch = int(run("git", "log", "-1", "--format=%ct"))
        run("git", "archive", f"--output={scratch / 'source.tar'}", "HEAD")
        with tarfile.open(scratch / "source.tar") as tar:
            tar.extractall(self.source, filter="data")
        self.project = tomllib.loads((self.source / "pyproject.toml").read_text())["project"]
        self.version: str = self.project["version"]
        self.name = f"{self.project['name']}-{self.version}"
        self.lock = (self.source / "requirements" / "runtime.txt").read_text()

    def packages(self) -> None:
        """Build the wheel, the sdist, and the lock of their dependencies."""
        run(sys.executable, "-m", "hatchling", "build", "-d", str(self.out), cwd=self.source, SOURCE_DATE_EPOCH=str(self.epoch))
        (self.out / f"{self.name}-requirements.txt").write_text(self.lock)

    def wheels(self) -> None:
        """Download all wheels of the lock, for machines without access to an index."""
        directory = self.scratch / "wheels"
        for python in PYTHONS:
            # pip looks at markers with the Python that it runs on: it gets only what belongs to this one.
            here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
            chosen = self.scratch / f"requirements-{python}.txt"
            chosen.write_text("".join(re.sub(r" ;[^\\\n]*", "", block) for block in sbom.locked(self.lock, here)))
            platforms = [f"--platform={platform}" for platform in LINUX]
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
            only = ["--only-binary=:all:", "--require-hashes", f"--python-version={python}", *platforms]
            run(*pip, *only, f"--requirement={chosen}", f"--dest={directory}")
        with (self.out / f"{self.name}-wheels-linux-x86_64.tar").open("wb") as out:
            archives.pack(out, ((f"wheels/{path.name}", path.read_bytes()) for path in sorted(directory.iterdir())), self.epoch)

    def charts(self) -> None:
        """Package the charts. `helm dependency build` would write the time into an umbrella's charts."""
        for chart in sorted((self.source / "helm").glob("*/Chart.yaml")):
            for needed in yaml.safe_load(chart.read_text()).get("dependencies", []):
                if (where := needed.get("repository", "")).startswith("file://"):
                    beside = chart.parent / where.removeprefix("file://")
                    shutil.copytree(beside, chart.parent / "charts" / needed["name"], dirs_exist_ok=True)
            said = run("helm", "package", str(chart.parent), "--destination", str(self.out))
            archives.repack_chart(Path(said.rpartition(": ")[2].strip()), self.epoch)

    def sboms(self) -> None:
        """Write the SBOM of the wheel. Each image has its own."""
        pins = sbom.locked(self.lock).values()
        (self.out / f"{self.name}.cdx.json").write_text(sbom.sbom(self.project, pins, (), self.epoch))

    def images(self) -> None:
        """Build an image for each architecture that the engine supports: its own, and with BuildKit those that it emulates."""
        own = run("docker", "version", "--format={{.Server.Arch}}").strip()
        try:
            built = {own, *re.findall(r"linux/(\w+)", run("docker", "buildx", "inspect"))}
        except Problem:
            built = {own}
        for machine in MACHINES:
            if machine in built:
                self.image(machine, [] if machine == own else [f"--platform=linux/{machine}"])
            else:
                print(f"no image for {machine}: this Docker Engine builds for {', '.join(sorted(built))}", file=sys.stderr)

    def image(self, machine: str, platform: Sequence[str]) -> None:
        """Build the archive of an image, and its SBOM."""
        labels = {"revision": self.revision, "version": self.version} | source_url()
        arguments = [f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()]
        iid, saved, scratch = (self.scratch / f"{name}-{machine}" for name in ("iid", "saved", "image"))
        # A layer that was built before the commit would have earlier times.
        fresh = ["--no-cache", f"--iidfile={iid}"]
        run("docker", "build", *fresh, *arguments, *platform, str(self.source), BUILDX_NO_DEFAULT_ATTESTATIONS="1")
        id = iid.read_text()
        run("docker", "save", f"--output={saved}", id)
        scratch.mkdir()
        name = f"{self.name}-image-{machine}"
        digest = archives.write_image(saved, self.out / f"{name}.tar", f"fedround:{self.version}", self.epoch, scratch)
        print(f"{name}.tar: {digest}")
        (self.out / f"{name}.cdx.json").write_text(self.image_sbom(id, machine))

    def image_sbom(self, id: str, machine: str) -> str:
        """Return the SBOM of an image. dpkg lists the packages of its system."""
        container = run("docker", "create", id).strip()
        try:
            for path in ("/var/lib/dpkg/status", "/usr/lib/os-release"):
                run("docker", "cp", f"{container}:{path}", str(self.scratch))
        finally:
            run("docker", "rm", container)
        variables = json.loads(run("docker", "image", "inspect", "--format={{json .Config.Env}}", id))
        (python,) = (value.partition("=")[2] for value in variables if value.startswith("PYTHON_VERSION="))
        here = {"python_version": python.rpartition(".")[0], "python_full_version": python, "platform_machine": MACHINES[machine]}
        pins = sbom.locked(self.lock, {**here, "sys_platform": "linux"}).values()
        system = sbom.debian((self.scratch / "status").read_text(), (self.scratch / "os-release").read_text())
        return sbom.sbom(self.project, pins, [*system, sbom.interpreter(python)], self.epoch)

    def sums(self) -> None:
        """Write the digest of each file, in the format of `sha256sum --check`."""
        lines = [f"{archives.digest(path).removeprefix('sha256:')}  {path.name}\n" for path in sorted(self.out.iterdir())]
        (self.out / "SHA256SUMS").write_text("".join(lines))


STEPS: Sequence[Callable[[Release], None]] = (Release.packages, Release.charts, Release.sboms, Release.images, Release.wheels)
NEEDED = {"charts": "helm", "images": "docker"}


def replace(former: Path, new: Path) -> None:
    """Replace the files of an earlier release. Raises `Problem`."""
    if former.exists() and any(former.iterdir()) and not (former / "SHA256SUMS").exists():
        raise Problem(f"{former} is not empty, and has no release in it: choose another directory with --out")
    shutil.rmtree(former, ignore_errors=True)
    shutil.copytree(new, former)


def source_url() -> dict[str, str]:
    """Return the URL of the remote `origin`, if others can open it."""
    try:
        url = run("git", "config", "--get", "remote.origin.url").strip()
    except Problem:
        url = ""
    match = re.fullmatch(r"(?:https://(?:[^@/]*@)?|ssh://[^@/]*@|[^@/]+@)([^/:]+)[/:](.+?)(?:\.git)?/?", url)
    return {"source": f"https://{match[1]}/{match[2]}"} if match else {}


def run(*command: str, cwd: Path = ROOT, **environ: str) -> str:
    """Return the output of a program. Raises `Problem`."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"{' '.join(command)}: exit code {done.returncode}\n{(done.stdout + done.stderr).strip()}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the release. Return 1 if it fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="directory for the files, in place of an earlier release (default: dist)"
    )
    parser.add_argument("--skip", nargs="+", default=[], choices=[step.__name__ for step in STEPS], help="what to leave out")
    chosen = parser.parse_args(arguments)
    for name, program in NEEDED.items():
        if name not in chosen.skip and shutil.which(program) is None:
            print(f"{program} is not installed: install it, or leave out what needs it: --skip {name}", file=sys.stderr)
            return 1
    try:
        with tempfile.TemporaryDirectory() as scratch:
            release = Release(Path(scratch))
            if run("git", "status", "--porcelain"):
                print(f"what is not committed is left out: this is {release.revision[:12]}", file=sys.stderr)
            for step in STEPS:
                if step.__name__ not in chosen.skip:
                    step(release)
            release.sums()
            replace(chosen.out, release.out)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
