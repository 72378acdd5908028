"""The commands as processes: a federation of them trains, and each ends with the exit code that says why."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

PARTICIPANTS = """
import fedround, numpy

class Steady(fedround.NumPyParticipant):
    def train_round(self, weights):
        return 1, numpy.full(5, 1.5)
"""
FEDROUND = (sys.executable, "-m", "fedround")
SETTINGS = {
    "COORDINATOR_ROUNDS": "2",
    "COORDINATOR_BIND": "127.0.0.1",
    "COORDINATOR_PORT": "0",
    "COORDINATOR_OPS_PORT": "0",
    "COORDINATOR_LOG_FORMAT": "json",
    "AGGREGATOR_BIND": "127.0.0.1",
    "AGGREGATOR_PORT": "0",
    "AGGREGATOR_OPS_PORT": "0",
    "PARTICIPANT_OPS_BIND": "127.0.0.1",
    "PARTICIPANT_OPS_PORT": "0",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A working directory with participants' classes."""
    (tmp_path / "mine.py").write_text(PARTICIPANTS)
    return tmp_path


@pytest.fixture
def ports() -> Iterator[dict[str, str]]:
    """`fedround platform`, by its ports. At the end it is asked to stop, and does."""
    with subprocess.Popen([*FEDROUND, "platform"], env=os.environ | SETTINGS, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found: dict[str, str] = {}
        while len(found) < 4:
            listening = re.match(r"(\w+): listening on .* port (\d+)", json.loads(process.stderr.readline())["message"])
            found |= {listening[1]: f"http://127.0.0.1:{listening[2]}"} if listening else {}
        yield found
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 0


def fedround(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDROUND, *arguments], capture_output=True, text=True, cwd=cwd, env=os.environ | SETTINGS, check=False, timeout=30
    )


def test_a_participant_trains_with_the_platform_and_the_model_can_be_fetched(ports: dict[str, str], directory: Path) -> None:
    trained = fedround("participant", "--coordinator-url", ports["COORDINATOR_PORT"], "--class", "mine:Steady", cwd=directory)
    assert (trained.returncode, trained.stdout) == (0, "")
    assert "round 1 completed" in trained.stderr

    fetched = fedround("model", "--from", ports["AGGREGATOR_OPS_PORT"], "-o", "model.npy", cwd=directory)
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert np.array_equal(np.load(directory / "model.npy"), np.full(5, 1.5))
    assert sorted(path.name for path in directory.glob("*model*")) == ["model.npy"]

    former = fedround("model", "--round", "0", "--from", ports["AGGREGATOR_OPS_PORT"], "-o", "former.npy", cwd=directory)
    assert former.returncode == 1
    assert "that model is not kept" in former.stderr

    files = sorted(directory.iterdir())
    for place in ("no/such/model.npy", "mine.py/model.npy", ".", "x" * 255):
        unwritable = fedround("model", "--from", ports["AGGREGATOR_OPS_PORT"], "-o", place, cwd=directory)
        assert unwritable.returncode == 1
        assert unwritable.stderr.startswith(f"the model cannot be written to {place}: ")
        assert "Traceback" not in unwritable.stderr
    assert sorted(directory.iterdir()) == files

    status = fedround("status", "--from", ports["COORDINATOR_OPS_PORT"], cwd=directory)
    assert (status.returncode, json.loads(status.stdout)["state"]) == (0, "complete")
    assert fedround("healthcheck", "--from", ports["AGGREGATOR_OPS_PORT"], cwd=directory).returncode == 0


def test_a_model_that_is_not_there_is_not_written(ports: dict[str, str], directory: Path) -> None:
    fetched = fedround("model", "--from", ports["AGGREGATOR_OPS_PORT"], "-o", "model.npy", cwd=directory)
    assert fetched.returncode == 1
    assert "404" in fetched.stderr
    assert not list(directory.glob("*.npy*"))


def test_a_port_in_use_exits_with_78_and_names_the_setting_after_warning_of_what_a_file_of_0_8_has_in_vain(
    ports: dict[str, str], directory: Path
) -> None:
    port = ports["COORDINATOR_PORT"].rpartition(":")[2]
    (directory / "coordinator.toml").write_text('[rpc]\nbind_address = "0.0.0.0:5555"\n')
    refused = fedround("coordinator", "-c", "coordinator.toml", "--port", port, cwd=directory)
    warning, *_, problem = map(json.loads, refused.stderr.splitlines())
    assert refused.returncode == 78
    assert (warning["level"], warning["message"]) == ("warning", "coordinator.toml: rpc.bind_address has no meaning here")
    assert (problem["level"], problem["message"].partition("=")[0]) == ("error", "COORDINATOR_PORT")
