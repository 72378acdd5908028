"""The commands of docs/guides/tls.md make certificates, and training works with the page's settings."""

import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from support.pages import ROOT, blocks
from support.processes import Process, fedround, running
from support.tools import tool

PAGE = ROOT / "docs" / "guides" / "tls.md"
OURS = [block for block in blocks(PAGE) if "test_training_with_certificates_works_as_documented" in block.comment]
*MAKING, STATUS = [block.commands for block in OURS if block.language == "console"]
SETTINGS = [block.commands for block in OURS if block.language == "sh"]


def made(directory: Path, commands: str) -> Path:
    """A directory with the files that the commands make."""
    tool("openssl")
    shutil.copytree(ROOT / "deploy" / "tls", directory / "deploy" / "tls")
    subprocess.run(["sh", "-c", "set -e\n" + commands], cwd=directory, check=True, capture_output=True)
    return directory


def settings(block: str, directory: Path) -> dict[str, str]:
    found = dict(re.findall(r"^export (\w+)=(.*)$", block, re.MULTILINE))
    return {name: str(directory / value) if value.endswith(".pem") else value for name, value in found.items()}


@pytest.mark.parametrize("commands", MAKING)
def test_training_with_certificates_works_as_documented(commands: str, tmp_path: Path) -> None:
    directory = made(tmp_path, commands)
    if (tmp_path / "certificates").exists():
        directory = tmp_path / "certificates"
    strict = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 is
    of_platform, of_participant = SETTINGS
    with running("platform", COORDINATOR_ROUNDS="2", **settings(of_platform, directory)) as platform:
        ours = settings(of_participant, directory)
        ours["PARTICIPANT_COORDINATOR_URL"] = ours["PARTICIPANT_COORDINATOR_URL"].replace(
            "8081", platform.ports["COORDINATOR_PORT"]
        )
        with running("participant", PARTICIPANT_CLASS="fedround.demo:HousePrices", **ours) as participant:
            assert participant.wait() == 0
        assert "peers will refuse" not in participant.log
        served(platform, strict)
        command = STATUS.replace("9081", platform.ports["COORDINATOR_OPS_PORT"]).replace("ca.pem", str(directory / "ca.pem"))
        assert '"state": "complete"' in fedround(*command.split()[1:]).stdout


def served(platform: Process, context: ssl.SSLContext) -> None:
    with socket.create_connection(("127.0.0.1", int(platform.ports["COORDINATOR_OPS_PORT"])), 10) as plain:
        context.wrap_socket(plain, server_hostname="localhost").close()


def test_existing_files_are_not_created_again(tmp_path: Path) -> None:
    directory = made(tmp_path, MAKING[1])
    before = {file: file.read_bytes() for file in directory.rglob("*.pem")}
    subprocess.run(["sh", "-c", MAKING[1]], cwd=directory, check=True, capture_output=True)
    assert {file: file.read_bytes() for file in directory.rglob("*.pem")} == before


def test_every_named_setting_exists() -> None:
    known = {row.variable for service in (ParticipantSettings, CoordinatorSettings, AggregatorSettings) for row in service.rows()}
    named = set(re.findall(r"\b(?:PARTICIPANT|COORDINATOR|AGGREGATOR)_[A-Z_]+\b", PAGE.read_text()))
    assert named <= known
