"""Interfaces that the runtime uses: a coordinator, an aggregator (`fedround.http.client` has the clients), and a trainer."""

from collections.abc import Sequence
from typing import Any, Protocol

from fedround.common import wire
from fedround.participant.round import Round


class Download(Protocol):
    """A downloaded model. `body` is None if the model still has the ETag that was sent."""

    @property
    def body(self) -> Any: ...

    @property
    def etag(self) -> str | None: ...


class Coordinator(Protocol):
    """A client of a coordinator. Each request may raise `ExchangeError`."""

    def rendez_vous(self, name: str, ordinal: int | None, *, evaluates: bool, claim: wire.Claim | None) -> wire.RendezVous: ...

    def heartbeat(self, id: str, *, wait: float, trouble: str, phase: str) -> wire.Heartbeat: ...

    def start_training(self, id: str) -> wire.StartTraining: ...

    def leave(self, id: str, reason: str) -> None: ...


class Aggregator(Protocol):
    """A client of an aggregator. Each request may raise `ExchangeError`. `abort`, from any thread, ends the request under way."""

    def download(self, url: str, id: str, token: str, *, etag: str | None) -> Download: ...

    def upload(
        self, url: str, id: str, token: str, buffers: Sequence[Any], *, metrics: str | None, evaluation: str | None = None
    ) -> wire.UpdateOutcome | None: ...

    def abort(self) -> None: ...


class Trainer(Protocol):
    """An object that runs the training code: in this process (`Training`), or in another one (`Supervisor`)."""

    @property
    def evaluates(self) -> bool:
        """Whether the training code can evaluate models. Known once it can train."""
        ...

    def __call__(self, round: Round, model: list[Any], /) -> Sequence[Any]:
        """Train, always on the same thread, and return the update in pieces for `Aggregator.upload`.

        Args:
            round: The round. Afterwards `round.metrics` and `round.evaluation` have what the training code reported.
            model: A list with the body that `Aggregator.download` returned. This call removes it from the list.

        Raises:
            ParticipantError: The training code failed.
        """
        ...

    def cancel(self) -> None:
        """Notify the training code that its round is cancelled; `Round.cancelled` is already set. From any thread."""
        ...

    def kill(self) -> None:
        """Kill the training code if that is possible; the training then fails. From any thread."""
        ...

    def close(self) -> None:
        """End the training code if that is possible, and its process: no more rounds follow. From any thread."""
        ...
