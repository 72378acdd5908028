"""The supervisor and its worker: shared memory, messages, and a worker with invalid messages."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround import events
from fedround.errors import ConfigurationError, FedroundError, ParticipantError, TrainingError
from fedround.participant import reports, supervisor
from fedround.participant.channel import MAX_MESSAGE, BadMessage, Channel
from fedround.participant.memory import BadMemory, Memory
from fedround.participant.process import Cause, end_of
from fedround.participant.round import Round, Shard
from fedround.participant.supervisor import Supervisor
from fedround.tensors import weights
from fedround.tensors.measures import statistics
from fedround.tensors.statistics import Change
from fedround.tensors.weights import Array
from support.updates import npy

MODULE = """
import os, sys, time
import numpy as np
import fedround

MISBEHAVIOUR = os.environ.get("MISBEHAVIOUR", "")
if MISBEHAVIOUR == "exit":
    sys.exit(3)
if MISBEHAVIOUR == "die":
    os._exit(3)
if MISBEHAVIOUR == "complain":
    raise ValueError("no data in " + "\\U0001f4c1" * 1_000_000)

class Doubling(fedround.NumPyParticipant):
    def train_round(self, weights, /):
        if MISBEHAVIOUR:
            exec(MISBEHAVIOUR, globals())
        weights *= 2
        return 7, weights

class Fresh(fedround.NumPyParticipant):
    def train_round(self, weights, /):
        return 7, weights * 2

class Broken(fedround.NumPyParticipant):
    def train_round(self, weights, /):
        raise ZeroDivisionError("no data today")
"""
TALK = """
import gc, socket, struct, json, time
from fedround.participant.channel import Channel
channel, = [found for found in gc.get_objects() if isinstance(found, Channel)]
"""


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """Yield both ends of a channel, and the socket of the second one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), Channel(theirs), theirs


Pair = tuple[Channel, Channel, socket.socket]


def memory(data: bytes) -> Memory:
    made = Memory.create()
    made.write(data)
    return made


# Memory and messages


def test_shared_memory_is_read_without_a_copy(pair: Pair) -> None:
    ours, theirs, _ = pair
    ours.send({"kind": "train"}, [memory(b"0123456789")])
    received = theirs.receive()
    assert received is not None
    message, (shared,) = received
    assert message == {"kind": "train"}
    shared.map()[2:4] = b"ab"
    shared.seal()
    piece = shared.piece(1, 5)
    assert (len(piece), piece[0:3], piece[3:100]) == (5, b"1ab", b"45")


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 11), (10, 1), (3, -1), (1 << 62, 1 << 62)])
def test_a_range_outside_the_memory_is_refused(offset: int, length: int) -> None:
    shared = memory(b"0123456789")
    shared.seal()
    with pytest.raises(BadMemory):
        shared.piece(offset, length)


@pytest.mark.skipif(sys.platform != "linux", reason="seals are Linux'")
def test_a_memory_that_can_shrink_is_refused() -> None:
    with pytest.raises(BadMemory):
        memory(b"0123456789").piece(0, 1)
    with pytest.raises(BadMemory):
        Memory(os.open(__file__, os.O_RDONLY)).piece(0, 1)
    shared = memory(b"0123456789")
    shared.seal()
    with pytest.raises(PermissionError):
        os.truncate(shared.fd, 1)


def test_a_memory_is_closed_with_its_last_reference() -> None:
    shared = memory(b"0123456789")
    shared.seal()
    piece, fd = shared.piece(0, 10), shared.fd
    del shared
    assert piece[0:1] == b"0"
    del piece
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_memory_does_not_use_the_descriptor_of_a_closed_standard_stream() -> None:
    program = """
import os
from fedround.participant.memory import Memory, memories_of
os.close(0)
fd = os.memfd_create("x")
(found,) = memories_of([fd])
print(fd, found.fd > 2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "0 True\n"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", MAX_MESSAGE + 1) + b"{}",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 3) + b"{,}",
        struct.pack(">I", 2) + b"\xff\xff",
        struct.pack(">I", 400_000) + b"[" * 400_000,
    ],
)
def test_an_invalid_message_is_an_error(pair: Pair, data: bytes) -> None:
    ours, _, theirs = pair
    with ThreadPoolExecutor() as pool:
        pool.submit(theirs.sendall, data)
        with pytest.raises(BadMessage):
            ours.receive()


@pytest.mark.parametrize("data", [b"", b"\0", struct.pack(">I", 10) + b"{}"])
def test_a_truncated_message_is_the_end(pair: Pair, data: bytes) -> None:
    ours, _, theirs = pair
    theirs.sendall(data)
    theirs.close()
    assert ours.receive() is None


def test_the_supervisor_does_not_wait_for_a_worker_that_does_not_read(pair: Pair) -> None:
    ours, _theirs, _ = pair
    ours.give_up_after(0.05)
    with pytest.raises(BlockingIOError):
        ours.send({"text": "x" * (MAX_MESSAGE - 20)})


STATISTICS = statistics(np.array([1.0, -2.0]))


@pytest.mark.parametrize(
    "fact",
    [
        events.WeightsMeasured(3, "local", 152, STATISTICS),
        events.UpdateMeasured(3, 7, None),
        events.UpdateMeasured(3, 7, Change(0.5, None)),
        events.UpdateMeasured(3, 7, Change(0.5, -1.0)),
    ],
)
def test_a_fact_is_transferred_unchanged(fact: events.Fact) -> None:
    assert reports.decode(3, json.loads(json.dumps(reports.encode(fact))), 0.0) == fact


def test_a_phase_is_transferred_with_its_age() -> None:
    told = json.loads(
        json.dumps([reports.encode(events.PhaseBegan(3, "train")), reports.encode(events.PhaseEnded(3, "train", 0.5))])
    )
    now = time.monotonic()
    began, ended = [reports.decode(3, fact, now) for fact in told]
    assert isinstance(began, events.PhaseBegan)
    assert isinstance(ended, events.PhaseEnded)
    assert 0 < ended.ago < began.ago < 5
    assert (ended.seconds, ended.error) == (0.5, "")


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["began", "ended", "weights", "update", "x"]), GARBAGE, GARBAGE, GARBAGE)
def test_an_invalid_fact_is_refused(kind: str, one: Any, two: Any, three: Any) -> None:
    told = {"fact": kind, "phase": one, "at": two, "seconds": three, "error": one, "source": "local", "size": two}
    told |= {"statistics": one, "samples": three, "change": two}
    with suppress(BadMessage):
        assert isinstance(reports.decode(0, told, 0.0), events.Fact)


@pytest.mark.parametrize(
    ("code", "cause", "text"),
    [
        (0, Cause.EXITED, "ended with exit code 0"),
        (-9, Cause.KILLED, "was killed by SIGKILL: out of memory?"),
        (-15, Cause.KILLED, "was killed by SIGTERM"),
        (-11, Cause.CRASHED, "crashed with SIGSEGV"),
        (-63, Cause.KILLED, "was killed by signal 63"),
    ],
)
def test_the_end_of_a_worker_is_described_in_words(code: int, cause: Cause, text: str) -> None:
    assert (end_of(code).cause, end_of(code).text) == (cause, text)


# A worker


@contextmanager
def supervised(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, misbehaviour: str = "") -> Iterator[Supervisor]:
    (directory / "silo.py").write_text(MODULE)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("MISBEHAVIOUR", misbehaviour)
    recipe: dict[str, object] = {"class": name, "options": {}, "local_tensors": [], "data_dir": None, "name": "silo-1"}
    recipe |= {"log_format": "text", "log_level": "info"}
    with Supervisor(recipe) as found:
        yield found


def train(trainer: Supervisor, model: bytes, facts: list[events.Fact] | None = None) -> bytes:
    round = Round(3, Shard(0, 1), lambda _figures: None)
    if facts is not None:
        trainer.attach(facts.append, lambda: None)
    return b"".join(piece[0 : len(piece)] for piece in trainer(round, [memory(model)]))


def doubled(model: Array) -> bytes:
    return b"".join(weights.encode_update(7, model * 2))


@pytest.mark.parametrize("name", ["silo:Doubling", "silo:Fresh"])
@pytest.mark.parametrize("size", [3, 1_000_000])
def test_a_worker_trains(name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = np.arange(float(size)), list[events.Fact]()
    with supervised(tmp_path, monkeypatch, name) as trainer:
        for _ in range(2):
            assert train(trainer, npy(model), facts) == doubled(model)
    phases = [fact.phase for fact in facts if isinstance(fact, events.PhaseBegan)]
    assert phases == ["check", "decode", "train", "encode", "check", "check", "encode"] * 2
    assert [fact.source for fact in facts if isinstance(fact, events.WeightsMeasured)] == ["global", "local"] * 2


def test_a_model_trained_in_place_is_sent_from_its_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = memory(npy(np.ones(1000)))
    inode = os.fstat(model.fd).st_ino
    with supervised(tmp_path, monkeypatch, "silo:Doubling") as trainer:
        header, data = trainer(Round(0, Shard(0, 1), lambda _figures: None), [model])
    assert os.fstat(data.memory.fd).st_ino == inode != os.fstat(header.memory.fd).st_ino
    assert len(data) == 8000


@pytest.mark.parametrize(
    ("name", "misbehaviour", "kind", "text"),
    [
        ("nowhere:Silo", "", ConfigurationError, "there is no module nowhere"),
        ("silo:Silo", "", ConfigurationError, "silo has no Silo"),
        ("silo:Doubling", "exit", ParticipantError, "cannot create silo:Doubling: SystemExit: 3"),
        ("silo:Doubling", "die", ParticipantError, "the training process ended with exit code 3"),
        ("silo:Doubling", "complain", ParticipantError, "silo cannot be imported: ValueError: no data in \U0001f4c1"),
    ],
)
def test_a_class_that_cannot_be_created_is_reported_and_not_retried(
    name: str, misbehaviour: str, kind: type[FedroundError], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with supervised(tmp_path, monkeypatch, name, misbehaviour) as trainer:
        with pytest.raises(kind, match=text):
            trainer.started()
        assert trainer.status()["restarts"] == 0


def test_modules_beside_the_class_do_not_replace_those_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fedround", "json", "numpy", "queue", "signal", "socket", "token"):
        (tmp_path / f"{name}.py").write_text("VALUE = 1")
    with supervised(tmp_path, monkeypatch, "silo:Fresh") as trainer:
        assert train(trainer, npy(np.ones(3))) == doubled(np.ones(3))


def test_a_failure_has_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = "train failed in round 3: ZeroDivisionError: no data today"
    with supervised(tmp_path, monkeypatch, "silo:Broken") as trainer, pytest.raises(TrainingError, match=complaint) as raised:
        train(trainer, b"")
    assert raised.value.trace.startswith("Traceback (most recent call last):\n")
    assert "silo.py" in raised.value.trace
    assert "training.py" not in raised.value.trace


@pytest.mark.parametrize(
    "misbehaviour",
    [
        'channel.send({"kind": "nonsense"})',
        'channel.send({"kind": "ready"})',
        'channel.send({"kind": "facts", "facts": [1]})',
        'channel.send({"kind": "facts", "facts": [{"fact": "ended", "phase": "check", "at": 0.0, "seconds": 1.0, "error": ""}]})',
        'channel.send({"kind": "reported", "serial": 1, "metrics": {"x" * 100: 1.0}})',
        'channel.send({"kind": "trained", "serial": 1, "facts": [], "pieces": [[0, 0, 100]]})',
        'channel.send({"kind": "trained", "serial": 1, "facts": [], "pieces": "all"})',
        'channel._socket.sendall(b"\\xff" * 100)',
    ],
)
def test_a_worker_that_sends_invalid_messages_is_replaced(
    misbehaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with supervised(tmp_path, monkeypatch, "silo:Doubling", TALK + misbehaviour + "\ntime.sleep(60)") as trainer:
        with pytest.raises(TrainingError, match="the training process was killed: it sent an invalid message"):
            train(trainer, npy(np.ones(3)))
        assert trainer.status()["restarts"] == 1


def test_a_training_waits_for_a_worker_that_is_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with supervised(tmp_path, monkeypatch, "silo:Doubling") as trainer:
        assert not trainer.started(0.0)
        assert train(trainer, npy(np.ones(3))) == doubled(np.ones(3))
        assert trainer.started()


def test_a_training_that_waits_for_a_worker_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PAUSE", 60.0)
    with supervised(tmp_path, monkeypatch, "silo:Doubling", "os._exit(3)") as trainer, ThreadPoolExecutor() as pool:
        for _ in range(2):
            with pytest.raises(TrainingError, match="exit code 3"):
                train(trainer, npy(np.ones(3)))
        waiting = pool.submit(train, trainer, npy(np.ones(3)))
        threading.Event().wait(0.05)
        trainer.kill()
        with pytest.raises(TrainingError, match="did not start before its round was cancelled"):
            waiting.result(20)


def test_a_stop_does_not_wait_for_a_worker_that_is_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with supervised(tmp_path, monkeypatch, "silo:Doubling") as trainer:
        trainer.interrupt()
        assert trainer.started()
        with pytest.raises(TrainingError, match="the participant is stopping"):
            train(trainer, npy(np.ones(3)))
