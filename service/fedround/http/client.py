"""The clients of a participant: one for its coordinator, one for its aggregator."""

import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any, Unpack

from fedround.common import wire
from fedround.common.text import redact
from fedround.common.wire import Claim, Departure, Heartbeat, Problem, RendezVous, StartTraining, UpdateOutcome
from fedround.errors import BadAnswer, ConfigurationError, Refused, TooLarge, Unreachable
from fedround.http.bodies import Piece, Sink, Slices, abortable
from fedround.http.exchange import NO_IDS, Client, Options
from fedround.http.tls import File, Names
from fedround.http.transport import Response, authorities, read

HOLD_MARGIN = 5.0
"""Seconds to wait for the response to a heartbeat, beyond the time for which the coordinator may hold it.

The participant must retry before its heartbeat time-out, or it loses its id.
"""
TRANSFER_TIMEOUT = 60.0
"""Seconds for the head of a transfer's response, and for each part of a model that the minimum rate transfers in that time."""
MODEL = "/model"


class CoordinatorClient(Client):
    """A participant's client of its coordinator. Every method raises `ExchangeError`.

    Args:
        url: Base URL of the coordinator. Its path precedes the paths of the protocol.
        options: See `Options`.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        if not wire.is_url(url):
            raise ConfigurationError(f"{redact(str(url))} is not a coordinator's URL: write http://host:port or https://host")
        super().__init__(url, **options)
        self._url = url

    def rendez_vous(
        self, name: str, ordinal: int | None = None, *, evaluates: bool = False, claim: Claim | None = None
    ) -> RendezVous:
        """Register.

        Args:
            name: Name shown in the coordinator's status and logs.
            ordinal: The previous ordinal, to get it again.
            evaluates: Whether the participant can evaluate models.
            claim: The shard that the participant claims.
        """
        headers = {wire.PARTICIPANT_NAME: name} | ({} if ordinal is None else {wire.ORDINAL: str(ordinal)})
        headers |= ({wire.EVALUATES: "true"} if evaluates else {}) | (claim.headers() if claim else {})
        with self._exchange("GET", self._url, wire.RENDEZ_VOUS, headers=headers) as response:
            return RendezVous.decode(read(response))

    def heartbeat(self, id: str, *, wait: float, trouble: str = "", phase: str = "") -> Heartbeat:
        """Send a heartbeat.

        Args:
            id: The id of the participant.
            wait: Maximum seconds for which the coordinator holds its response until there is news. 0: it responds immediately.
            trouble: The reason why the aggregator is unreachable, for operators.
            phase: One of `wire.PHASES`.
        """
        hold = math.ceil(wait)
        headers, timeout = {wire.PREFER: f"wait={hold}"}, hold + HOLD_MARGIN
        if trouble:
            headers[wire.TROUBLE] = wire.one_line(redact(trouble).encode("ascii", "replace").decode())
        if phase:
            headers[wire.PHASE] = phase
        with self._exchange("GET", self._url, wire.HEARTBEAT, {"id": id}, headers=headers, timeout=timeout) as response:
            return Heartbeat.decode(read(response))

    def start_training(self, id: str) -> StartTraining:
        """Return the aggregator's URL and the token for this round."""
        try:
            with self._exchange("GET", self._url, wire.START_TRAINING, {"id": id}) as response:
                return StartTraining.decode(read(response))
        except Refused as refused:
            if refused.status == 404 and not refused.detail:
                # A 0.8 coordinator responds like this while its aggregator is unreachable.
                raise Unreachable(f"{refused}: the coordinator cannot reach its aggregator") from refused
            raise

    def leave(self, id: str, reason: str = "") -> None:
        """Deregister. `reason`: the failure because of which it leaves, for operators. A 0.8 coordinator ignores the request."""
        headers = {"Content-Type": Problem.media_type} if reason else {}
        body = Slices([Departure(redact(reason)).encode()], Event()) if reason else None
        with self._exchange("DELETE", self._url, wire.LEAVE, {"id": id}, accept=(200, 204, 404, 405), headers=headers, body=body):
            pass

    def push(self, path: str, message: bytes) -> None:
        """Send telemetry, which the coordinator forwards."""
        headers = {"Content-Type": wire.PROTOBUF, "Content-Encoding": "gzip"}
        body = Slices([gzip.compress(message, 1)], Event())
        with self._exchange("POST", self._url, path, headers=headers, body=body) as response:
            read(response)


@dataclass(frozen=True, slots=True)
class Download:
    """A global model. `body`: its bytes, writable, or the `Sink` that has them; None if the model still has the given ETag."""

    body: Any
    etag: str | None


class AggregatorClient(Client):
    """A participant's client of its aggregator, for one transfer at a time. Every method raises `ExchangeError`.

    Args:
        max_model_size: Maximum bytes of a global model.
        make_sink: Creates the sink that receives a model. Default: memory of this process.
        options: See `Options`.
    """

    def __init__(self, *, max_model_size: int, make_sink: Callable[[], Sink] | None = None, **options: Unpack[Options]) -> None:
        super().__init__(None, **Options(timeout=TRANSFER_TIMEOUT) | options)
        self._max_model_size = max_model_size
        self._make_sink = make_sink
        self._aborted = Event()

    def download(self, url: str, id: str, token: str, *, etag: str | None = None) -> Download:
        """Fetch the global model, which is empty before the first aggregation.

        Args:
            url: URL of the aggregator.
            id: The id of the participant.
            token: The upload permission.
            etag: The ETag of a known model, which is not fetched again. None: fetch any model.

        Raises:
            TooLarge: The model exceeds `max_model_size`; nothing was allocated for it.
        """
        return self.fetch(url, wire.UPDATE, {"id": id, "token": token}, etag=etag)

    def fetch(self, url: str, path: str, ids: Mapping[str, str] = NO_IDS, *, etag: str | None = None) -> Download:
        """Fetch a model from the path `path` with the ids `ids`. See `download`."""
        self._aborted.clear()
        headers, accept = ({}, [200]) if etag is None else ({"If-None-Match": etag}, [200, 304])
        with self._exchange("GET", url, path, ids, accept=accept, headers=headers) as response:
            unchanged = response.status_code == 304
            body = read(response) if unchanged else self._receive(response)
            return Download(None if unchanged else body, response.headers.get("ETag"))

    def upload(
        self,
        url: str,
        id: str,
        token: str,
        buffers: Sequence[bytes | memoryview | Piece],
        *,
        metrics: str | None = None,
        evaluation: str | None = None,
    ) -> UpdateOutcome | None:
        """Send an update.

        Args:
            url: URL of the aggregator.
            id: The id of the participant.
            token: The upload permission.
            buffers: The bytes of the update, in order.
            metrics: Metrics of training as JSON, if any.
            evaluation: Evaluation of the global model as JSON, if any.

        Returns:
            The outcome that the aggregator reports; None from a 0.8 aggregator, which reports none.
        """
        self._aborted.clear()
        reported = {wire.METRICS: metrics, wire.EVALUATION: evaluation}
        headers = {"Content-Type": "application/octet-stream"} | {name: text for name, text in reported.items() if text is not None}
        with (
            closing(Slices(buffers, self._aborted)) as body,
            self._exchange("POST", url, wire.UPDATE, {"id": id, "token": token}, headers=headers, body=body) as response,
        ):
            read(response)
            return _outcome(response.headers.get(wire.UPDATE_OUTCOME))

    def abort(self) -> None:
        """End the current transfer, if any, with `Aborted` after its current read or write. Call it from another thread."""
        self._aborted.set()

    def _receive(self, response: Response) -> memoryview | Sink:
        headers = response.headers
        announced = "Content-Length" in headers and "Transfer-Encoding" not in headers
        size = self._allowed(int(headers["Content-Length"])) if announced else None
        if self._make_sink is not None:
            return self._receive_in(self._make_sink(), response)
        if size is None:
            return self._receive_unannounced(response)
        import numpy as np  # not at the top: a process that receives into a `Sink` does not load NumPy

        try:
            body = np.empty(size, np.uint8).data  # a bytearray would write zeros first
        except MemoryError as error:
            raise TooLarge(f"the global model has {size} bytes, and there is no memory for them") from error
        end = 0
        for chunk in abortable(self._aborted, response.iter_raw()):
            body[end : end + len(chunk)] = chunk
            end += len(chunk)
        return body

    def _receive_in(self, sink: Sink, response: Response) -> Sink:
        size = 0
        try:
            for chunk in abortable(self._aborted, response.iter_raw()):
                size = self._allowed(size + len(chunk))
                sink.write(chunk)
        except BaseException:
            sink.close()
            raise
        return sink

    def _receive_unannounced(self, response: Response) -> memoryview:
        body = bytearray()
        for chunk in abortable(self._aborted, response.iter_raw()):
            body += chunk
            self._allowed(len(body))
        return memoryview(body)

    def _allowed(self, size: int) -> int:
        if size > self._max_model_size:
            raise TooLarge(f"the global model has {size} bytes or more, PARTICIPANT_MAX_MODEL_SIZE allows {self._max_model_size}")
        return size


def _outcome(value: str | None) -> UpdateOutcome | None:
    try:
        return None if value is None else UpdateOutcome(value)
    except ValueError:
        raise BadAnswer(f"unknown update outcome {value!r:.40}") from None


def fetch_model(
    url: str, *, round: str | None = None, token: str | None = None, ca_file: File | None = None, max_model_size: int = 1 << 40
) -> tuple[memoryview, int | None]:
    """Fetch a global model from an aggregator's ops port.

    Args:
        url: URL of the ops port.
        round: The number of the round that made the model, or `best`. None: the newest model.
        token: The operators' token.
        ca_file: PEM file with CA certificates to trust besides the public ones.
        max_model_size: Maximum bytes of the model.

    Returns:
        The bytes of the model's file, and the number of the round that made it; None for an initial model.

    Raises:
        ExchangeError: The aggregator did not respond, or refused the request.
    """
    names = Names("", "", "--ca-file")
    context = authorities(ca_file, names) if url.startswith("https://") else None
    with closing(AggregatorClient(max_model_size=max_model_size, token=token, tls=context)) as aggregator:
        model = aggregator.fetch(url, MODEL if round is None else f"{MODEL}?round={round}")
    etag = (model.etag or "").removeprefix("W/").strip('"')
    return model.body or memoryview(b""), int(etag) if etag.isdecimal() else None
