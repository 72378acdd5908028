"""Traces: one per round across coordinator, participants and aggregator, and one per request outside of rounds.

Import this module only if the process makes traces: it imports OpenTelemetry, whose SDK reads its own `OTEL_*` variables.

This module makes the HTTP spans itself. OpenTelemetry's instrumentations of httpx and ASGI would record whole URLs, which contain
ids and tokens, and would take longer than a small request itself.
"""

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from importlib.metadata import version
from random import SystemRandom

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fedround import events
from fedround.common import wire
from fedround.common.text import printable, redact
from fedround.events import Fact
from fedround.observability.otlp import resource

ROUND = "fedround.round"
REGISTER = "fedround.register"
LEDGER = "/books/ledger"
MAX_CHILDREN = 100
"""Maximum number of selected participants whose spans join the coordinator's trace. With more, each has its own, linked trace."""
REGISTER_SECONDS = 60.0
"""Seconds after which a trace of failing registrations ends and the next one begins."""

NONE = Context()

_W3C = TraceContextTextMapPropagator()
_LONG_HEX = re.compile("[0-9a-fA-F]{9,}")


class Tracing:
    """The spans of a process. `before` and `after` are observers: they run before and after all others.

    Args:
        service: participant, coordinator, aggregator or platform.
        instance: Name of this instance of the service.
        exporters: Receivers of the spans.
        heartbeats: Whether a heartbeat outside of rounds makes a trace.
    """

    def __init__(self, service: str, instance: str, exporters: list[SpanExporter], *, heartbeats: bool = True) -> None:
        self._ids = _Ids()
        self._train: int | None = None
        """The reserved id of the next `train` span, which the worker already uses as a parent."""
        self._provider = TracerProvider(resource=resource(service, instance), shutdown_on_exit=False, id_generator=self._ids)
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._run = _RunAttributes()
        self._provider.add_span_processor(self._run)
        self._tracer = self._provider.get_tracer("fedround", version("fedround"))
        self._heartbeats = heartbeats
        self._round: Span | None = None
        self._selected = 0
        """Number of participants selected for the coordinator's round."""
        self._registering: Span | None = None
        self._registering_since = 0.0
        self._phases = threading.local()
        self._failed: dict[tuple[str, str], int] = {}
        """Consecutive failures, by method and path."""

    def set_global(self) -> None:
        """Make this the global tracer provider, so that spans of training code join the round's trace."""
        trace.set_tracer_provider(self._provider)

    def close(self, within: float = 2.0) -> None:
        """Send the remaining spans, for at most `within` seconds."""
        for span in (self._round, self._registering):
            if span is not None:
                span.end()
        # On a thread, because the SDK does not keep its time-outs if the receiver does not respond.
        flushing = threading.Thread(target=self._provider.shutdown, name="fedround-traces", daemon=True)
        flushing.start()
        flushing.join(within)

    def ids(self) -> dict[str, str] | None:
        """Return the ids of the current span, for log lines and exemplars; None if no sampled span is open."""
        span = trace.get_current_span()
        if not span.get_span_context().is_valid:
            span = self._round or span
        found = span.get_span_context()
        if not found.trace_flags.sampled:
            return None
        return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}

    @contextmanager
    def within(self, traceparent: str | None) -> Iterator[None]:
        """Make spans of this thread children of another process's span, within the block."""
        token = context.attach(_remote(traceparent))
        try:
            yield
        finally:
            context.detach(token)

    def set_run(self, run: str, name: str) -> None:
        """Make all spans part of this run from now on."""
        self._run.attributes = {"fedround.run.id": run, "fedround.run.name": name} if run else {}

    def train_context(self) -> str | None:
        """Return the context of the next `train` span, as `traceparent` for the worker."""
        if self._round is None:
            return None
        found, self._train = self._round.get_span_context(), self._ids.generate_span_id()
        ids = f"{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(self._train)}"
        return f"00-{ids}-{found.trace_flags:02x}"

    def round_context(self) -> dict[str, str]:
        """Return the context of the coordinator's round as a field of the protocol: `traceparent`, or `tracelink`."""
        if self._round is None:
            return {}
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._round))
        return {"tracelink" if self._selected > MAX_CHILDREN else "traceparent": carrier["traceparent"]}

    # Facts

    def before(self, fact: Fact) -> None:
        """Start the spans that `fact` starts."""
        match fact:
            case events.RunStarted(run, name):
                self.set_run(run, name)
            case events.RoundJoined(number, _, traceparent, tracelink, run, name):
                self.set_run(run, name)
                self._begin_round(number, _remote(traceparent), _remote(tracelink))
            case events.AttemptOpened(number):
                self._begin_round(number)
            case events.Selected(_, ids):
                self._selected += len(ids)
            case events.PhaseBegan(_, phase, ago):
                if phase == "train":
                    self._ids.reserved, self._train = self._train, None
                span = self._tracer.start_span(phase, self._parent(), start_time=_time(ago))
                self._open_phases().append((span, context.attach(trace.set_span_in_context(span))))

    def after(self, fact: Fact) -> None:
        """Set the attributes from `fact`, and end the spans that it ends."""
        match fact:
            case events.PhaseEnded(_, "confirm", seconds):
                self._tracer.start_span("confirm", self._parent(), start_time=_time(seconds)).end()
            case events.PhaseEnded(_, _, _, error, ago) if self._open_phases():
                span, token = self._open_phases().pop()
                context.detach(token)
                _failed(span, error)
                span.end(_time(ago))
            case events.Registered(_, reason):
                self._end_registering(reason)
            case events.RegistrationRefused():
                self._end_registering()
            case events.Retrying(wire.RENDEZ_VOUS, reason) if time.monotonic() >= self._registering_since + REGISTER_SECONDS:
                self._end_registering(error=reason)
            case events.WeightsMeasured(_, _, _, statistics) if self._round is not None:
                self._round.set_attribute("fedround.round.parameters", statistics.count)
            case events.UpdateMeasured(_, samples) if self._round is not None:
                self._round.set_attribute("fedround.round.samples", samples)
            case events.MetricsReported(_, metrics) if self._round is not None:
                self._round.set_attributes({f"fedround.metric.{name}": value for name, value in metrics})
            case events.RoundEnded(outcome=outcome):
                self._end_round(outcome)
            case events.RoundCompleted(ids=ids, samples=samples, parameters=parameters):
                known = {"participants": len(ids), "samples": samples, "parameters": parameters}
                self._end_round("completed", {f"fedround.round.{name}": value for name, value in known.items()})
            case events.TrainingCompleted():  # ends the evaluation of the final model, an attempt without a round
                self._end_round("evaluated")
            case events.AttemptDropped(timed_out=timed_out):
                self._end_round("timed_out" if timed_out else "failed")

    def _register(self) -> Span:
        """Return the span of the current registration, or a new one."""
        if self._registering is None:
            self._registering, self._registering_since = self._tracer.start_span(REGISTER, NONE), time.monotonic()
        return self._registering

    def _end_registering(self, reason: str = "", error: str = "") -> None:
        span, self._registering = self._registering, None
        if span is not None:
            if reason:
                span.set_attribute("fedround.register.reason", reason)
            _failed(span, error)
            span.end()

    def _begin_round(self, number: int, parent: Context = NONE, linked: Context = NONE) -> None:
        if self._round is None:
            self._selected = 0
            link = trace.get_current_span(linked).get_span_context()
            links = [trace.Link(link)] if link.is_valid else []
            self._round = self._tracer.start_span(ROUND, parent, links=links, attributes={"fedround.round.number": number})

    def _end_round(self, outcome: str, attributes: Mapping[str, int] | None = None) -> None:
        span, self._round = self._round, None
        if span is not None:
            span.set_attributes({"fedround.round.outcome": outcome, **(attributes or {})})
            _failed(span, outcome if outcome in ("failed", "timed_out") else "")
            span.end()

    def _open_phases(self) -> list[tuple[Span, Token[Context]]]:
        # A phase begins and ends on one thread.
        if not hasattr(self._phases, "open"):
            self._phases.open = []
        phases: list[tuple[Span, Token[Context]]] = self._phases.open
        return phases

    def _parent(self) -> Context:
        """Return the context of this thread's current span, or else of the round's span."""
        if trace.get_current_span().get_span_context().is_valid:
            return context.get_current()
        return NONE if self._round is None else trace.set_span_in_context(self._round)

    # HTTP

    @contextmanager
    def client(self, method: str, url: str, path: str) -> Iterator["ClientSpan"]:
        """Open the span of a request that this process sends. `path` is its URL template."""
        parent = self._parent()
        if path == wire.RENDEZ_VOUS:
            parent = trace.set_span_in_context(self._register())
        if path == LEDGER or (path == wire.HEARTBEAT and not self._heartbeats and self._round is None):
            yield ClientSpan(trace.INVALID_SPAN, {"traceparent": _not_sampled()})
            return
        span = self._tracer.start_span(f"{method} {path}", parent, SpanKind.CLIENT)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        if span.is_recording():
            span.set_attributes(
                {"http.request.method": method, "url.template": path, "url.full": printable(redact(url)), **_server(url)}
            )
            if again := self._failed.get((method, path), 0):
                span.set_attribute("http.request.resend_count", again)
        exchange = ClientSpan(span, headers)
        token = context.attach(trace.set_span_in_context(span))
        try:
            yield exchange
            self._failed.pop((method, path), None)
        except BaseException as error:
            self._failed[method, path] = self._failed.get((method, path), 0) + 1
            if exchange.status is None:
                _failed(span, type(error.__cause__ or error).__name__)
            raise
        finally:
            context.detach(token)
            span.end()

    @contextmanager
    def server(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator["ServerSpan"]:
        """Open the span of a request that this process serves. Pushes of telemetry have none: each would cause another push."""
        if path in wire.OTLP:
            yield ServerSpan(trace.INVALID_SPAN, method)
            return
        span = self._tracer.start_span(method, propagate.extract(headers, NONE), SpanKind.SERVER)
        if span.is_recording():
            path = _LONG_HEX.sub(lambda match: match[0][:8], printable(redact(path)))  # ids in any spelling
            span.set_attributes({"http.request.method": method, "url.path": path, "url.scheme": "http"})
        token = context.attach(trace.set_span_in_context(span))
        try:
            yield ServerSpan(span, method)
        finally:
            context.detach(token)
            span.end()


class _RunAttributes(SpanProcessor):
    """The attributes of the current run, which each span gets, including those of training code."""

    attributes: Mapping[str, str] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See `SpanProcessor`."""
        span.set_attributes(self.attributes)


class _Ids(IdGenerator, threading.local):
    """Ids from the system's random numbers.

    The SDK uses the module `random`, which training code may seed. Then all participants would have the same ids, and each span
    would change the random numbers of training code.
    """

    reserved: int | None = None
    """Reserved id of this thread's next span."""
    _random = SystemRandom()

    def generate_trace_id(self) -> int:
        """Return an id from 1 to 2**128 - 1."""
        return self._random.randrange(1, 1 << 128)

    def generate_span_id(self) -> int:
        """Return the reserved id, or one from 1 to 2**64 - 1."""
        reserved, self.reserved = self.reserved, None
        return reserved or self._random.randrange(1, 1 << 64)

    def is_trace_id_random(self) -> bool:
        """Return True, so that samplers use the id."""
        return True


class ClientSpan:
    """The span of a request that this process sends, with `headers`."""

    def __init__(self, span: Span, headers: Mapping[str, str]) -> None:
        self._span = span
        self.headers = headers
        self.status: int | None = None

    def answered(self, status: int) -> None:
        """Set the status of the response."""
        self.status = status
        self._span.set_attribute("http.response.status_code", status)
        _failed(self._span, str(status) if status >= 400 else "")


class ServerSpan:
    """The span of a request that this process serves."""

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    def answered(self, route: str, status: int | None) -> None:
        """Set the route and the status; None: the connection closed before. Only a server error is an error of the span."""
        if route:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            _failed(self._span, str(status) if status >= 500 else "")


def _time(ago: float) -> int:
    """Return the Unix time `ago` seconds ago, in nanoseconds."""
    return time.time_ns() - int(ago * 1e9)


def _remote(traceparent: str | None) -> Context:
    return _W3C.extract({"traceparent": traceparent}, NONE) if traceparent else NONE


def _failed(span: Span, error: str) -> None:
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))


def _server(url: str) -> dict[str, str | int]:
    match = re.match(r"(https?)://(?:[^/@]*@)?(\[[^\]]*\]|[^:/]*)(?::(\d+))?", url)
    if match is None:
        return {}
    return {"server.address": match[2].strip("[]"), "server.port": int(match[3] or (443 if match[1] == "https" else 80))}


def _not_sampled() -> str:
    """Return a `traceparent` that is not sampled, so that a server which follows its parent does not sample either."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
