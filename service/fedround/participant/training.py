"""Runs the participant's own code on one global model: decode, train, encode, check. No reference to the model outlives its use."""

import importlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedround import weights as codec
from fedround.errors import DeserializationError, FedroundError, ParticipantError, SerializationError, TrainingError
from fedround.events import Observer
from fedround.participant.abc import ParticipantABC
from fedround.participant.measuring import Measuring
from fedround.participant.phase import phase
from fedround.participant.round import Round, entered


class Training:
    """Calls a participant's methods, always on the thread that calls this. `measuring`: what looks at the weights on their way."""

    def __init__(self, participant: ParticipantABC[Any, Any], observe: Observer, measuring: Measuring | None = None) -> None:
        self._participant = participant
        self._observe = observe
        self._measuring = measuring

    def __call__(self, round: Round, model: list[Any]) -> Sequence[memoryview]:
        """The update for the only element of `model`, which is taken out of the list: whoever trains holds the last reference.

        Raises:
            ParticipantError: from what the participant's code raised.
        """
        code, measuring = self._participant, self._measuring
        if measuring is not None:
            measuring.received(round.number, model[0])
        first = not len(model[0])
        with entered(round):
            with self._step(round, "decode", DeserializationError, "data is empty: there is no global model yet" if first else ""):
                data = model.pop()
                if not code.takes_buffers:
                    data = bytes(data)
                box = [code.deserialize_training_input(data)]
                del data
            with self._step(round, "train", TrainingError, "there is no global model yet" if first else "", of="NoneType"):
                result = code.train_round(box.pop())
            with self._step(round, "encode", SerializationError):
                parts = _parts(code.serialize_training_result(result))
            if measuring is not None:  # what is not sent, too: who is paged for a failed round wants to see the NaN
                measuring.trained(round.number, parts)
            with self._step(round, "check", SerializationError):
                code.check_training_result(result)
        return parts

    @contextmanager
    def _step(self, round: Round, name: str, error: type[ParticipantError], note: str = "", *, of: str = "") -> Iterator[None]:
        """`note`: what an error that speaks `of` something may come from."""
        try:
            with phase(self._observe, round.number, name):
                yield
        except Exception as cause:
            text = f"{name} failed in round {round.number}: {type(cause).__name__}: {cause}"
            raise error(f"{text} ({note})" if note and of in str(cause) else text) from cause


def _parts(payload: Any) -> list[memoryview]:
    """The bytes of a buffer of whatever kind, or of several."""
    try:
        return [np.frombuffer(payload, np.uint8).data]  # a memoryview cannot be cast from every format
    except TypeError:
        return [np.frombuffer(buffer, np.uint8).data for buffer in payload]


Traced = tuple[type[BaseException], BaseException, TracebackType | None]

_IMPORTS = ("<frozen importlib", importlib.__file__)
_CALLERS = (__file__, str(Path(__file__).with_name("load.py")))
"""Where users' code is called from."""
_OURS = (*_CALLERS, str(Path(__file__).with_name("abc.py")), codec.__file__)


def traced(error: FedroundError | None) -> Traced | None:
    """What to log of it as `exc_info`: the traceback from the first line of the participant's own code on, or nothing.

    Nothing, where no line of its own is to blame: what it returned was refused, or it cannot be called in this way.
    """
    cause = error.__cause__ if isinstance(error, ParticipantError) else None
    if cause is None:
        return None
    trace = cause.__traceback__
    last = ""
    while trace is not None and (file := trace.tb_frame.f_code.co_filename).startswith((*_OURS, *_IMPORTS)):
        trace, last = trace.tb_next, file
    if trace is None and not isinstance(cause, SyntaxError):
        if isinstance(cause, FedroundError) or last in _CALLERS:
            return None
        trace = cause.__traceback__
    return type(cause), cause, trace


def release(error: BaseException) -> None:
    """Drop what the frames of an error's tracebacks hold, models above all; their lines stay."""
    left, seen = [error], set[int]()  # its causes may go round in a circle
    while left:
        one = left.pop()
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [other for other in (one.__cause__, one.__context__) if other is not None and id(other) not in seen]
