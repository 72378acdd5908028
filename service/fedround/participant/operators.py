"""The participant's operations port, on a separate thread: its imports do not delay the registration."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedround.common.settings import ParticipantSettings
from fedround.observability.health import Health

if TYPE_CHECKING:
    from fedround.observability.telemetry import Telemetry


class OpsPort:
    """The server of the operations port. If it fails, it calls `on_failure`, and `check` raises the error."""

    def __init__(
        self,
        settings: ParticipantSettings,
        health: Health,
        status: Callable[[], Mapping[str, object]],
        telemetry: "Telemetry",
        *,
        on_failure: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._health = health
        self._status = status
        self._telemetry = telemetry
        self._on_failure = on_failure
        self._started: Future[Callable[[], object]] = Future()
        """A function that stops the server."""
        self._error: Exception | None = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve within the block."""
        thread = threading.Thread(target=self._run, name="fedround-ops", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._started.result()()
            thread.join()

    def check(self) -> None:
        """Raise the error of a failed server."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 raised by `check`
            self._error = error
            self._on_failure()
        finally:
            if not self._started.done():
                self._started.set_result(lambda: None)

    async def _serve(self) -> None:
        from fedround.http import serve, tls
        from fedround.observability import ops

        settings, telemetry = self._settings, self._telemetry
        access = ops.access(settings)
        app = ops.app(self._health, self._status, scrape=telemetry.scrape, access=access)
        endpoint = serve.Endpoint(
            app,
            host=settings.ops_bind,
            port=settings.ops_port,
            setting="PARTICIPANT_OPS_PORT",
            kind="ops",
            tls=telemetry.watched(tls.server("PARTICIPANT_OPS", settings.ops_tls_cert_file, settings.ops_tls_key_file)),
            observe=telemetry.observe,
            known=access.known,
        )
        async with serve.serving(endpoint):
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._started.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
            await stopped.wait()
