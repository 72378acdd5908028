"""The real xain-sdk 0.8.0, in its own environment, on our platform: alone, with our participants, and in a race."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support import venvs
from support.federation import Running, our_platform

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TRAINER = HERE / "trainer.py"
OURS = sys.executable
REPEATS = int(os.environ.get("CONFORMANCE_REPEATS", "1"))
"""Number of runs of the race."""


@pytest.fixture(scope="session")
def theirs() -> str:
    """Return the Python of an environment with xain-sdk 0.8.0."""
    return venvs.required(venvs.XAIN_SDK)


@contextmanager
def started(*commands: Sequence[str], cwd: Path = HERE) -> Iterator[list[subprocess.Popen[str]]]:
    """Run processes within the block."""
    # Without the path to our own `xain_sdk`, which the real one must not find.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    processes = [
        subprocess.Popen(command, cwd=cwd, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def train(p: Running, pythons: Sequence[str], period: float) -> None:
    """Train with known answers, one participant for each of `pythons`, until the platform responds with `finish`."""
    commands = [[python, str(TRAINER), str(k), str(len(pythons)), p.url, str(period)] for k, python in enumerate(pythons)]
    with started(*commands) as processes:
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors[-2000:]


def check_the_books(p: Running, rounds: int, participants: int) -> None:
    """Check that every participant's update was counted once in every round, and no other update."""
    status = p.status()
    assert (status["state"], status["round"]) == ("complete", rounds)
    assert {completed["counted"] for completed in status["last_rounds"]} == {participants}
    model = p.platform.aggregator.model
    assert model is not None
    weights = np.load(io.BytesIO(b"".join(model.buffers)), allow_pickle=False)
    assert weights.tolist() == [float(rounds)] * participants


@pytest.mark.timeout(300)
def test_the_real_xain_sdk_trains_alone(theirs: str) -> None:
    with our_platform(rounds=10) as p:
        train(p, [theirs], 0.05)
        check_the_books(p, 10, 1)


@pytest.mark.timeout(300)
def test_the_real_xain_sdk_trains_among_ours(theirs: str) -> None:
    with our_platform(rounds=10, min_clients=4) as p:
        train(p, [theirs, OURS, theirs, OURS], 0.05)
        check_the_books(p, 10, 4)


@pytest.mark.timeout(300)
def test_the_tutorials_weights_fall_with_the_real_xain_sdk(theirs: str) -> None:
    example = ROOT / "examples" / "tutorial"
    command = [theirs, "-m", "xain_sdk_tutorial.participant", "--upper-bound", "1000"]
    with our_platform(rounds=4) as p, started([*command, "--coordinator-url", p.url], cwd=example) as (process,):
        _, log = process.communicate()
        assert process.returncode == 0, log[-2000:]
        assert p.status()["state"] == "complete"
    weights = [float(value) for value in re.findall(r"global weights: \[ *([\d.e+-]+)", log)]
    assert len(weights) == 3
    assert weights == sorted(weights, reverse=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("repeat", range(REPEATS))
def test_ten_fast_participants_on_a_busy_machine_count_once_in_each_of_100_rounds(theirs: str, repeat: int) -> None:
    """On a 0.8 platform this training never ends: a heartbeat that crosses the response to an upload requests the round again."""
    busy = [sys.executable, "-c", "while True: pass"]
    with our_platform(rounds=100, min_clients=10) as p, started(busy, busy):
        train(p, [theirs] * 10, 0.05)
        check_the_books(p, 100, 10)
