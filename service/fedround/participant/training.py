"""Runs the participant's own code on one global model: decode, train, encode, check. No reference to the model outlives its use."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedround.common.evaluation import HOW, parts
from fedround.common.text import described
from fedround.errors import DeserializationError, ParticipantError, SerializationError, TrainingError
from fedround.events import Observer
from fedround.participant.abc import NumPyParticipant, ParticipantABC
from fedround.participant.measuring import Measuring
from fedround.participant.phase import phase
from fedround.participant.round import Round, entered

LOG = logging.getLogger(__name__)


class Training:
    """Calls a participant's methods, always on the thread that calls this.

    Args:
        participant: An instance of the user's class.
        observe: Is told of the phases of a round.
        measuring: Looks at the weights on their way.
        failures: What counts as a failure of the participant's own code. Everything else passes: in a program of the user's,
            `SystemExit` may come from a signal handler of that program, and then means the program.
    """

    def __init__(
        self,
        participant: ParticipantABC[Any, Any],
        observe: Observer,
        measuring: Measuring | None = None,
        *,
        failures: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    ) -> None:
        self._participant = participant
        self._observe = observe
        self._measuring = measuring
        self._failures = failures

    def __call__(self, round: Round, model: list[Any]) -> Sequence[memoryview]:
        """The update for the only element of `model`, which is taken out of the list: whoever trains holds the last reference.

        Raises:
            ParticipantError: from what the participant's code raised.
        """
        code, measuring = self._participant, self._measuring
        if measuring is not None:
            measuring.received(round.number, model[0])
        first = not len(model[0])
        if isinstance(code, NumPyParticipant):
            round.local_tensors = code.local_tensors
        with entered(round):
            with self._step(round, "decode", DeserializationError, "data is empty: there is no global model yet" if first else ""):
                data = model.pop()
                if not code.takes_buffers:
                    data = bytes(data)
                box = [code.deserialize_training_input(data)]
                del data
            if self.evaluates and not first and round.run is not None and round.run.evaluate:
                self._evaluate(round, box[0])
            if round.run is not None and not round.run.train:
                return []
            with self._step(round, "train", TrainingError, "there is no global model yet" if first else "", of="NoneType"):
                result = code.train_round(box.pop())
            with self._step(round, "encode", SerializationError):
                parts = _parts(code.serialize_training_result(result))
            if measuring is not None:  # what is not sent, too: who is paged for a failed round wants to see the NaN
                measuring.trained(round.number, parts)
            with self._step(round, "check", SerializationError):
                code.check_training_result(result)
        return parts

    @property
    def evaluates(self) -> bool:
        """Whether the class has a method `evaluate` that takes a model. One of 0.8 has to say so: its method may be anything."""
        if not (isinstance(self._participant, NumPyParticipant) or self._participant.evaluates):
            return False
        try:
            inspect.signature(getattr(self._participant, "evaluate")).bind(None)  # noqa: B009 not every class has it
        except (AttributeError, TypeError, ValueError):
            return False
        return True

    def _evaluate(self, round: Round, model: Any) -> None:
        """Have the global model evaluated. A failure costs the evaluation only: nothing that is trained depends on it."""
        try:
            with phase(self._observe, round.number, "evaluate"):
                found = self._participant.evaluate(model)  # type: ignore[attr-defined]  # see `evaluates`
                if found is None:  # this time, or this object, does not evaluate
                    return
                round.evaluated(*parts(found))
        except self._failures as error:
            LOG.warning("round %d: the global model is not evaluated: %s; %s", round.number, described(error), HOW)

    def cancel(self) -> None:
        """Nothing to do: the code that trains looks at the very `Round`."""

    def kill(self) -> None:
        """Not possible: nobody can end a thread."""

    def close(self) -> None:
        """Nothing to do."""

    @contextmanager
    def _step(self, round: Round, name: str, error: type[ParticipantError], note: str = "", *, of: str = "") -> Iterator[None]:
        """`note`: what an error that speaks `of` something may come from."""
        try:
            with phase(self._observe, round.number, name):
                yield
        except self._failures as cause:
            what = described(cause)
            text = f"{name} failed in round {round.number}: {what}"
            raise error(f"{text} ({note})" if note and of in what else text) from cause


def _parts(payload: Any) -> list[memoryview]:
    """The bytes of a buffer of whatever kind, or of several."""
    try:
        return [np.frombuffer(payload, np.uint8).data]  # a memoryview cannot be cast from every format
    except TypeError:
        return [np.frombuffer(buffer, np.uint8).data for buffer in payload]
