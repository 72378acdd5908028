"""What the runtime asks of a coordinator and an aggregator (`fedround.http.client` has clients), and of whatever trains."""

from collections.abc import Sequence
from typing import Any, Protocol

from fedround.common import wire
from fedround.participant.round import Round


class Download(Protocol):
    """`body` is None where the model is still the one of the etag."""

    @property
    def body(self) -> Any: ...

    @property
    def etag(self) -> str | None: ...


class Coordinator(Protocol):
    """What is asked of a coordinator. Each may raise `ExchangeError`."""

    def rendez_vous(self, name: str, ordinal: int | None, *, evaluates: bool, claim: wire.Claim | None) -> wire.RendezVous: ...

    def heartbeat(self, id: str, *, wait: float, trouble: str, phase: str) -> wire.Heartbeat: ...

    def start_training(self, id: str) -> wire.StartTraining: ...

    def leave(self, id: str, reason: str) -> None: ...


class Aggregator(Protocol):
    """What is asked of an aggregator. Each may raise `ExchangeError`; `abort` cuts, from any thread, what is under way."""

    def download(self, url: str, id: str, token: str, *, etag: str | None) -> Download: ...

    def upload(
        self, url: str, id: str, token: str, buffers: Sequence[Any], *, metrics: str | None, evaluation: str | None = None
    ) -> wire.UpdateOutcome | None: ...

    def abort(self) -> None: ...


class Trainer(Protocol):
    """Whatever runs the participant's own code: in this process (`Training`), or in another (`Supervisor`)."""

    @property
    def evaluates(self) -> bool:
        """Whether it can evaluate models. Known once it can train."""
        ...

    def __call__(self, round: Round, model: list[Any], /) -> Sequence[Any]:
        """Train, always on the same thread. Return the update as pieces that `Aggregator.upload` takes.

        Args:
            round: The round. `round.figures` and `round.evaluation` have what was reported when this returns.
            model: Its only element is what `Aggregator.download` returned as body; it is taken out.

        Raises:
            ParticipantError: The participant's own code failed.
        """
        ...

    def cancel(self) -> None:
        """Tell the code under way that its round is cancelled, as `Round.cancelled` says already. From any thread."""
        ...

    def kill(self) -> None:
        """End the code under way by force, where that is possible; it has failed then. From any thread."""
        ...

    def close(self) -> None:
        """No more rounds follow: end the code under way if that is possible, and what runs it. From any thread."""
        ...
