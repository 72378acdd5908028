"""The commands as processes: a federation trains, and each command ends with the right exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.processes import ANY_PORT, JSON, LOOPBACK, Process, fedround, running

PARTICIPANTS = """
import fedround, numpy

class Steady(fedround.NumPyParticipant):
    def train_round(self, weights):
        return 1, numpy.full(5, 1.5)
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the classes of participants."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PARTICIPANTS)
    return tmp_path


@pytest.fixture
def platform() -> Iterator[Process]:
    """Run a platform, and stop it with SIGTERM at the end."""
    with running("platform", COORDINATOR_ROUNDS="2") as process:
        yield process
        assert process.end() == 0


def test_a_participant_trains_with_a_platform_and_the_model_can_be_fetched(platform: Process, directory: Path) -> None:
    settings = {"PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"), **LOOPBACK, **ANY_PORT}
    trained = fedround("participant", "--class", "mine:Steady", **settings)
    assert (trained.returncode, trained.stdout) == (0, "")
    assert "round 1 completed" in trained.stderr

    fetched = fedround("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "-o", "model.npy")
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert np.array_equal(np.load(directory / "model.npy"), np.full(5, 1.5))
    assert sorted(path.name for path in directory.glob("*model*")) == ["model.npy"]

    former = fedround("model", "--round", "0", "--from", platform.url("AGGREGATOR_OPS_PORT"), "-o", "former.npy")
    assert former.returncode == 1
    assert "no model of this round is stored" in former.stderr

    files = sorted(directory.iterdir())
    for place in ("no/such/model.npy", "mine.py/model.npy", ".", "x" * 255):
        unwritable = fedround("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "-o", place)
        assert unwritable.returncode == 1
        assert unwritable.stderr.startswith(f"cannot write the model to {place}: ")
        assert "Traceback" not in unwritable.stderr
    assert sorted(directory.iterdir()) == files

    status = fedround("status", "--from", platform.url("COORDINATOR_OPS_PORT"))
    assert (status.returncode, json.loads(status.stdout)["state"]) == (0, "complete")
    assert fedround("healthcheck", "--from", platform.url("AGGREGATOR_OPS_PORT")).returncode == 0


@pytest.mark.parametrize("command", ["status --from URL", "platform --show-settings", "platform --help"])
def test_a_reader_that_closes_the_pipe_ends_a_command_without_an_error(platform: Process, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = command.replace("URL", platform.url("COORDINATOR_OPS_PORT")).split()
    ended = subprocess.run([sys.executable, "-m", "fedround", *words], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_missing_model_is_not_written(platform: Process, directory: Path) -> None:
    fetched = fedround("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "-o", "model.npy")
    assert fetched.returncode == 1
    assert "404" in fetched.stderr
    assert not list(directory.glob("*.npy*"))


def test_a_port_in_use_exits_with_78_after_warnings_about_a_0_8_file(platform: Process, directory: Path) -> None:
    port = platform.ports["COORDINATOR_PORT"]
    (directory / "coordinator.toml").write_text('[rpc]\nbind_address = "0.0.0.0:5555"\n')
    refused = fedround("coordinator", "-c", "coordinator.toml", "--port", port, **LOOPBACK | ANY_PORT | JSON)
    warning, *_, problem = map(json.loads, refused.stderr.splitlines())
    assert refused.returncode == 78
    assert (warning["level"], warning["message"]) == ("warning", "coordinator.toml: rpc.bind_address has no effect")
    assert (problem["level"], problem["message"].partition("=")[0]) == ("error", "COORDINATOR_PORT")
