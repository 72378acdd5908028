"""The worker: the process that runs the training code on its main thread. The supervisor starts it.

`python -m fedround.participant.worker SOCKET PARENT`: the descriptor of its socket, and the process id of the supervisor.
"""

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fedround.common import exiting
from fedround.common.text import described
from fedround.common.wire import Run
from fedround.errors import ConfigurationError, DataDirectoryHeld, ParticipantError, TrainingError
from fedround.events import Fact, PhaseBegan
from fedround.observability import logs
from fedround.observability.traces import tracing
from fedround.participant import local, reports, traces
from fedround.participant.abc import ParticipantABC
from fedround.participant.channel import Channel
from fedround.participant.load import load_participant
from fedround.participant.measuring import Measuring
from fedround.participant.memory import Memory
from fedround.participant.phase import phase
from fedround.participant.round import Round, Shard
from fedround.participant.training import Training

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
Message = tuple[Mapping[str, Any], list[Memory]]


class Model:
    """The memory of a global model, and the offsets of arrays in it."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._start = 0
        self._map: weakref.ref[mmap] | None = None

    def map(self) -> memoryview:
        """Map its bytes, writable. The mapping ends when the training code drops its last reference."""
        if not self.memory.size:
            return memoryview(bytearray())
        mapped = self.memory.map()
        self._map, self._start = weakref.ref(mapped), _address(mapped)
        return memoryview(mapped)

    def offset(self, part: memoryview) -> int | None:
        """Return the offset of `part` in this memory; None if it lies elsewhere."""
        mapped = self._map() if self._map is not None else None
        if mapped is None or not len(part):
            return None
        offset = _address(part) - self._start
        return offset if 0 <= offset <= len(mapped) - len(part) else None


def _address(buffer: mmap | memoryview) -> int:
    return np.frombuffer(buffer, np.uint8).ctypes.data


def share(parts: Sequence[memoryview], model: Model) -> tuple[list[list[int]], list[Memory]]:
    """Return the parts of an update as pieces of shared memory (memory's number, offset, length), and these memories.

    Parts that were trained in place stay where they are. All others are copied once, after an unused model is released.
    """
    offsets = [model.offset(part) for part in parts]
    if offsets.count(None) == len(offsets):
        model.memory.close()
    own, pieces, end = Memory.create(), list[list[int]](), 0
    for part, offset in zip(parts, offsets, strict=True):
        if offset is not None:
            pieces.append([1, offset, len(part)])
            continue
        own.write(part)
        if pieces and pieces[-1][0] == 0:
            pieces[-1][2] += len(part)
        else:
            pieces.append([0, end, len(part)])
        end += len(part)
    own.seal()
    return pieces, [own] if model.memory.fd < 0 else [own, model.memory]


def _shared(parts: Sequence[memoryview], model: Model) -> tuple[list[list[int]], list[Memory]]:
    try:
        return share(parts, model)
    except OSError as error:
        _give_up("cannot share its update", error)


def _give_up(what: str, error: OSError) -> Never:
    """End this process. The supervisor starts another worker."""
    LOG.error("the training process %s: %s. Does the training code close file descriptors?", what, error)
    exiting.exit_now(os.EX_IOERR)


class Worker:
    """A worker that executes the supervisor's messages. `read` needs a separate thread; `run` needs the main thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()
        self._round: tuple[int, Round] | None = None
        self._facts: list[Mapping[str, object]] = []
        self._cancelled = -1
        """Serial number of the last cancelled training."""

    def read(self) -> None:
        """Receive until the supervisor is gone; then end this process, and all processes that the training code started."""
        try:
            while (received := self._channel.receive()) is not None:
                match received[0]:
                    case {"kind": "cancel", "serial": int(serial)}:
                        self._cancelled = serial
                        if (current := self._round) is not None and current[0] == serial:
                            current[1].cancelled = True
                    case {"kind": "close"}:
                        self._inbox.put(None)
                    case _:
                        self._inbox.put(received)
        finally:
            _end_group()

    def forget(self) -> None:
        """Forget the supervisor in a forked process. One that returns from the training code ends: no thread would wake it."""
        self._channel.forget()
        self._inbox = SimpleQueue()
        self._inbox.put(None)

    def run(self) -> int:
        """Create the participant, and train until the supervisor closes. Returns the exit code."""
        first = self._inbox.get()
        if first is None:
            return os.EX_OK
        recipe = first[0]
        del first
        logs.configure(recipe["log_format"], recipe["log_level"], service="fedround-participant", participant=recipe["name"])
        with ExitStack() as stack:
            try:
                participant = _load(recipe["class"], recipe["options"])
                directory = Path(recipe["data_dir"]) if recipe["data_dir"] else None
                stack.enter_context(local.persisted(participant, recipe["local_tensors"], directory))
            except (ConfigurationError, DataDirectoryHeld, ParticipantError) as error:
                self._send({"kind": "unusable", **_failure(error)})
                return os.EX_OK
            spans = stack.enter_context(tracing("participant", recipe["name"]))
            training = Training(participant, self._observe, Measuring(self._observe), failures=BaseException)
            self._send({"kind": "ready", "evaluates": training.evaluates})
            while (received := self._inbox.get()) is not None:
                self._train(training, *received, spans)
                del received
        return os.EX_OK

    def _train(self, training: Training, message: Mapping[str, Any], memories: list[Memory], spans: "Tracing | None") -> None:
        serial, model = message["serial"], Model(memories.pop())
        run = Run.decode(message["run"])
        if run is not None:
            logs.add_fields(run=run.name, run_id=run.id)
            if spans:
                spans.set_run(run.id, run.name)
        round = Round(message["round"], Shard(*message["shard"]), partial(self._report, serial), run)
        round.cancelled = message["cancelled"]
        self._round = serial, round
        if self._cancelled == serial:
            round.cancelled = True
        try:
            with spans.within(message["traceparent"]) if spans else nullcontext():
                parts = training(round, [self._mapped(model)])
                with phase(self._observe, round.number, "encode"):
                    pieces, shared = _shared(parts, model)
        except ParticipantError as error:
            failure = _failure(error)
            traces.release(error)
            self._send({"kind": "failed", "serial": serial, "facts": self._take_facts(), **failure})
        else:
            del parts
            done = {"facts": self._take_facts(), "pieces": pieces, "evaluation": round.evaluation}
            self._send({"kind": "trained", "serial": serial, **done}, shared)
        finally:
            self._round = None

    @staticmethod
    def _mapped(model: Model) -> memoryview:
        try:
            return model.map()
        except OSError as error:
            raise TrainingError(f"the global model of {model.memory.size} bytes cannot be mapped: {error.strerror}") from error

    def _send(self, message: Mapping[str, object], memories: Sequence[Memory] = ()) -> None:
        try:
            self._channel.send(message, memories)
        except OSError as error:
            _give_up("lost its connection", error)

    def _observe(self, fact: Fact) -> None:
        """Collect facts. To save time, few messages bring them: when evaluation or training begins, and with the result."""
        if (encoded := reports.encode(fact)) is not None:
            self._facts.append(encoded)
            if isinstance(fact, PhaseBegan) and fact.phase in ("evaluate", "train"):
                self._send({"kind": "facts", "facts": self._take_facts()})

    def _take_facts(self) -> list[Mapping[str, object]]:
        facts, self._facts = self._facts, []
        return facts

    def _report(self, serial: int, metrics: Mapping[str, float]) -> None:
        self._send({"kind": "reported", "serial": serial, "metrics": dict(metrics)})


def _failure(error: BaseException) -> Mapping[str, str]:
    """Return the fields of a message for an error. The text of an exception may be too long for a message."""
    return {"error": type(error).__name__, "text": str(error)[: traces.MAX_TEXT], "trace": traces.text_of(error)}


def _load(name: str, options: Mapping[str, Any]) -> ParticipantABC[Any, Any]:
    try:
        return load_participant(name, options)
    except (ConfigurationError, ParticipantError):
        raise
    except BaseException as error:
        # `sys.exit()` in a module must not end the service with success.
        raise ParticipantError(f"cannot create {name}: {described(error)}") from error


def _end_group() -> None:
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Make the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the supervisor has already ended
        os._exit(1)


def main() -> Never:
    """Run a worker."""
    descriptor, parent = map(int, sys.argv[1:])
    _die_with(parent)
    if sys.__stderr__ is not None:
        faulthandler.register(signal.SIGUSR1)  # the supervisor asks for the stacks of training code that hangs
    del sys.argv[1:]  # training code that reads the command line finds it empty
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    worker = Worker(channel)
    os.register_at_fork(after_in_child=worker.forget)
    threading.Thread(target=worker.read, name="fedround-worker", daemon=True).start()
    try:
        code = worker.run()
    except ConfigurationError as error:
        code = error.exit_code  # the supervisor reads the same variables, and logs what is wrong
    exiting.exit_after_grace(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
