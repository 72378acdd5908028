"""Programs written for xain-sdk 0.8.0."""

import logging
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

import fedround
import xain_sdk
import xain_sdk.participant
from fedround import errors
from support.federation import FINISH, STAND_BY, After, Answer, OldPlatform, order, our_platform

EXAMPLE = Path(__file__).parent.parent / "examples" / "tutorial"
# The example follows the end of the public tutorial of xain-sdk 0.8.0, in our words. Its earlier version ignores the first round.
FINAL = (EXAMPLE / "xain_sdk_tutorial" / "participant.py").read_text()
FIRST = FINAL.replace(" if data else None", "")


class Ones(fedround.NumPyParticipant):
    def train_round(self, training_input: object) -> fedround.Update:
        return fedround.Update(1, np.ones(1))


def run(program: str, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, "--coordinator-url", url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_final_code_of_the_tutorial_trains() -> None:
    with our_platform(rounds=5) as p:
        done = run(FINAL, p.url, "--upper-bound", "1000")
        assert (done.returncode, p.status()["state"]) == (0, "complete")
    lines = re.findall(r"global weights: \[([\d.e+-]+)", done.stderr)
    values = [float(value) for value in lines]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)


def test_the_log_of_the_tutorial_is_as_shown() -> None:
    with our_platform(rounds=1) as p:
        log = run(FINAL, p.url, "--upper-bound", "1000").stderr
    ours = re.compile(r"INFO +(waiting|downloading|retrieved|>>>|<<<)")
    lines = [line[24:] for line in log.splitlines() if ours.match(line[24:])]
    begin = lines.index("INFO     downloading global weights from the aggregator")
    assert "INFO     waiting for being selected" in lines[:begin]
    asked, answered, retrieved = lines[begin + 1 : begin + 4]
    assert re.fullmatch(r"INFO     >>> GET http://localhost:\d+/[0-9a-f]{8}/\*\*\*", asked)
    assert re.fullmatch(r"INFO     <<< GET http://localhost:\d+/[0-9a-f]{8}/\*\*\* \[200\]", answered)
    assert retrieved == "INFO     retrieved training data (length: 0 bytes)"


def test_the_first_code_of_the_tutorial_ends_with_its_error() -> None:
    assert FIRST != FINAL
    with our_platform(rounds=1) as p:
        done = run(FIRST, p.url, "--upper-bound", "100")
    assert done.returncode == 1
    # Newer versions of NumPy raise EOFError in place of ValueError.
    assert re.search(
        r"in deserialize_training_input\n(?:.*\n)*(ValueError|EOFError): .*\n\n"
        r"The above exception was the direct cause .*\n(?:.*\n)*fedround\.errors\.DeserializationError: ",
        done.stderr,
    )


def test_the_names_of_0_8_are_available() -> None:
    assert xain_sdk.__all__ == ["ParticipantABC", "ParticipantError", "configure_logging", "run_participant"]
    assert xain_sdk.ParticipantABC is xain_sdk.participant.ParticipantABC is fedround.ParticipantABC
    assert xain_sdk.ParticipantError is errors.ParticipantError
    for name in ("TrainingError", "DeserializationError", "SerializationError"):
        assert getattr(xain_sdk.participant, name) is getattr(errors, name)
        assert issubclass(getattr(errors, name), xain_sdk.ParticipantError)


def test_requests_are_logged_only_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for wanted in (True, False):
            caplog.clear()
            xain_sdk.configure_logging(log_http_requests=wanted)
            with OldPlatform(heartbeat=After("upload", [STAND_BY, order(0)], FINISH)) as p:
                xain_sdk.run_participant(Ones(), p.url, heartbeat_period=0.02)
            names = {record.name for record in caplog.records}
            assert ("xain-sdk.http" in names, "httpx" in names) == (wanted, not wanted)
            assert "retrieved training data (length: 0 bytes)" in [r.getMessage() for r in caplog.records if r.name == "http"]


@pytest.mark.parametrize("method", ["deserialize_training_input", "train_round", "serialize_training_result"])
def test_interrupted_error_ends_the_program_as_in_0_8(method: str, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted(self: object, data: object) -> bytes:
        raise InterruptedError

    class Ending(xain_sdk.ParticipantABC[bytes, bytes]):
        def deserialize_training_input(self, data: bytes) -> bytes:
            return data

        def train_round(self, training_input: bytes) -> bytes:
            return training_input

        def serialize_training_result(self, training_result: bytes) -> bytes:
            return training_result

    setattr(Ending, method, interrupted)
    with OldPlatform(heartbeat=[order(0)]) as p:
        with pytest.raises(SystemExit) as left:
            xain_sdk.run_participant(Ending(), p.url, heartbeat_period=0.02)
        assert len(p.of("leave")) == 1
    assert left.value.code == 0
    assert "exiting: interrupt signal caught" in caplog.messages


def test_interrupted_error_of_a_signal_handler_ends_a_waiting_program() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise InterruptedError from ValueError()

    def signalled() -> Answer:
        os.kill(os.getpid(), signal.SIGTERM)
        return STAND_BY

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        with OldPlatform(heartbeat=[signalled, STAND_BY]) as p:
            with pytest.raises(SystemExit) as left:
                xain_sdk.run_participant(Ones(), p.url, heartbeat_period=0.02)
            assert len(p.of("leave")) == 1
    finally:
        signal.signal(signal.SIGTERM, former)
    assert left.value.code == 0


def test_it_warns_if_the_real_xain_sdk_is_installed(tmp_path: Path) -> None:
    metadata = tmp_path / "xain_sdk-0.8.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: xain-sdk\nVersion: 0.8.0\n")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", "import xain_sdk"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "RuntimeWarning: xain-sdk 0.8.0 is installed beside fedround" in done.stderr


# Our own tutorial

TUTORIAL = "fedround.participant.tutorial"


@pytest.mark.parametrize("command", [[sys.executable, "-m", *words] for words in (["fedround", "tutorial"], [TUTORIAL])])
def test_it_runs_as_a_command_and_as_a_module(command: list[str]) -> None:
    with our_platform(rounds=3) as p:
        program = [*command, "--upper-bound", "10", "--coordinator-url", p.url]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert (done.returncode, p.status()["state"]) == (0, "complete")
    assert done.stderr.count("local weight") == 3


def test_it_ends_cleanly_on_sigterm() -> None:
    with our_platform(min_clients=2) as p:
        program = [sys.executable, "-m", "fedround", "tutorial", "--upper-bound", "10", "--coordinator-url", p.url]
        with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while "registered" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert p.status()["participants"] == []


def test_its_help_is_that_of_0_8() -> None:
    program = [sys.executable, "-m", "fedround", "tutorial", "--help"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    text = " ".join(done.stdout.split())
    assert "--upper-bound UPPER_BOUND Initial upper bound for picking a random float to send to the coordinator" in text


def test_the_script_of_the_0_8_tutorial_is_only_in_its_package() -> None:
    assert {script.name for script in entry_points(group="console_scripts") if script.value.startswith("fedround")} == {"fedround"}
    scripts = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"run-participant": "xain_sdk_tutorial.participant:main"}
