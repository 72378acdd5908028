"""One round of the training code: decode, train, encode, check. No reference to the model outlives its use."""

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
    """A trainer that calls a participant's methods on the calling thread.

    Args:
        participant: An instance of the user's class.
        observe: Called with the phases of a round.
        measuring: Measures the weights of model and update.
        failures: Exceptions that count as failures of the training code. All others propagate: in a user's program a signal handler
            may raise `SystemExit` to end that program.
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
        """Return the update for the only element of `model`. It is removed from the list, so training has the last reference.

        Raises:
            ParticipantError: The training code failed. The cause is its exception.
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
            if measuring is not None:  # also an update that fails its check: the metrics must show its NaN
                measuring.trained(round.number, parts)
            with self._step(round, "check", SerializationError):
                code.check_training_result(result)
        return parts

    @property
    def evaluates(self) -> bool:
        """Whether the class has a method `evaluate` that takes a model, and sets `evaluates` or is a `NumPyParticipant`."""
        if not (isinstance(self._participant, NumPyParticipant) or self._participant.evaluates):
            return False
        try:
            inspect.signature(getattr(self._participant, "evaluate")).bind(None)  # noqa: B009 not every class has it
        except (AttributeError, TypeError, ValueError):
            return False
        return True

    def _evaluate(self, round: Round, model: Any) -> None:
        """Evaluate the global model. A failure is logged, and training continues."""
        try:
            with phase(self._observe, round.number, "evaluate"):
                found = self._participant.evaluate(model)  # type: ignore[attr-defined]  # see `evaluates`
                if found is None:  # no evaluation of this model
                    return
                round.evaluated(*parts(found))
        except self._failures as error:
            LOG.warning("round %d: the global model is not evaluated: %s; %s", round.number, described(error), HOW)

    def cancel(self) -> None:
        """Do nothing: the training code reads the same `Round`."""

    def kill(self) -> None:
        """Do nothing: a thread cannot be killed."""

    def close(self) -> None:
        """Do nothing."""

    @contextmanager
    def _step(self, round: Round, name: str, error: type[ParticipantError], note: str = "", *, of: str = "") -> Iterator[None]:
        """Run one step as a phase, and convert its exceptions. `note` is appended to an error whose text contains `of`."""
        try:
            with phase(self._observe, round.number, name):
                yield
        except self._failures as cause:
            what = described(cause)
            text = f"{name} failed in round {round.number}: {what}"
            raise error(f"{text} ({note})" if note and of in what else text) from cause


def _parts(payload: Any) -> list[memoryview]:
    """Return the bytes of one or several buffers of any format."""
    try:
        return [np.frombuffer(payload, np.uint8).data]  # a memoryview cannot be cast from every format
    except TypeError:
        return [np.frombuffer(buffer, np.uint8).data for buffer in payload]
