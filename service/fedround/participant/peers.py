"""What the runtime asks of a coordinator and of an aggregator. `fedround.http` has clients that fit."""

from collections.abc import Sequence
from typing import Any, Protocol

from fedround import wire


class Download(Protocol):
    """`body` is None where the model is still the one of the etag."""

    @property
    def body(self) -> Any: ...

    @property
    def etag(self) -> str | None: ...


class Coordinator(Protocol):
    """What is asked of a coordinator. Each may raise `ExchangeError`."""

    def rendez_vous(self, name: str, ordinal: int | None) -> wire.RendezVous: ...

    def heartbeat(self, id: str, *, wait: float, trouble: str) -> wire.Heartbeat: ...

    def start_training(self, id: str) -> wire.StartTraining: ...

    def leave(self, id: str, reason: str) -> None: ...


class Aggregator(Protocol):
    """What is asked of an aggregator. Each may raise `ExchangeError`; `abort` cuts, from any thread, what is under way."""

    def download(self, url: str, id: str, token: str, *, etag: str | None) -> Download: ...

    def upload(
        self, url: str, id: str, token: str, buffers: Sequence[bytes | memoryview], *, metrics: str | None
    ) -> wire.UpdateOutcome | None: ...

    def abort(self) -> None: ...
