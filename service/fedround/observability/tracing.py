"""Traces: one of each round across coordinator, participants and aggregator, one of every exchange beside it.

Imported only where traces are wanted. The SDK is set up by its own `OTEL_*` variables. The spans of HTTP are made here and not by
an instrumentation of httpx or ASGI: these would see whole URLs, and with them ids and tokens, and cost a small request more than it
costs itself.
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
"""How many participants' rounds are in one trace with the coordinator's; of more selected, each is a trace of its own."""
REGISTER_SECONDS = 60.0
"""How long a trace of attempts to register may become, while nobody answers; then another one begins."""

NONE = Context()

_W3C = TraceContextTextMapPropagator()
_LONG_HEX = re.compile("[0-9a-fA-F]{9,}")


class Tracing:
    """The spans of a process: `before` and `after` are observers, to be told of each fact before and after all others.

    Args:
        service: participant, coordinator, aggregator or platform.
        instance: Its name among others of its kind.
        exporters: Where spans go.
        heartbeats: Whether a heartbeat outside of rounds is a trace.
    """

    def __init__(self, service: str, instance: str, exporters: list[SpanExporter], *, heartbeats: bool = True) -> None:
        self._ids = _Ids()
        self._train: int | None = None
        """The id that was promised for the span of the training that is about to begin."""
        self._provider = TracerProvider(resource=resource(service, instance), shutdown_on_exit=False, id_generator=self._ids)
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._run = _RunAttributes()
        self._provider.add_span_processor(self._run)
        self._tracer = self._provider.get_tracer("fedround", version("fedround"))
        self._heartbeats = heartbeats
        self._round: Span | None = None
        self._selected = 0
        """Of the coordinator's round."""
        self._registering: Span | None = None
        self._registering_since = 0.0
        self._phases = threading.local()
        self._failed: dict[tuple[str, str], int] = {}
        """How often in a row, by method and path."""

    def serve_user_code(self) -> None:
        """Make the provider the one of the process: spans that the participant's own code makes are in the round's trace."""
        trace.set_tracer_provider(self._provider)

    def close(self, within: float = 2.0) -> None:
        """Send what is there, in `within` seconds or not at all: the SDK's own time-outs do not hold when nobody answers."""
        for span in (self._round, self._registering):
            if span is not None:
                span.end()
        flushing = threading.Thread(target=self._provider.shutdown, name="fedround-traces", daemon=True)
        flushing.start()
        flushing.join(within)

    def ids(self) -> dict[str, str] | None:
        """The ids of the span that is under way, for log lines and exemplars; None where there is none that is sampled."""
        span = trace.get_current_span()
        if not span.get_span_context().is_valid:
            span = self._round or span
        found = span.get_span_context()
        if not found.trace_flags.sampled:
            return None
        return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}

    @contextmanager
    def within(self, traceparent: str | None) -> Iterator[None]:
        """In the block spans of this thread are children of one of another process."""
        token = context.attach(_remote(traceparent))
        try:
            yield
        finally:
            context.detach(token)

    def enter(self, run: str, name: str) -> None:
        """From now on spans belong to this run."""
        self._run.attributes = {"fedround.run.id": run, "fedround.run.name": name} if run else {}

    def train_context(self) -> str | None:
        """The context that the span of the next training will have, as `traceparent` for the process that trains."""
        if self._round is None:
            return None
        found, self._train = self._round.get_span_context(), self._ids.generate_span_id()
        ids = f"{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(self._train)}"
        return f"00-{ids}-{found.trace_flags:02x}"

    def round_context(self) -> dict[str, str]:
        """Of the coordinator's round that is open, by the name that it has on the wire: the parent of other rounds, or a link."""
        if self._round is None:
            return {}
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._round))
        return {"tracelink" if self._selected > MAX_CHILDREN else "traceparent": carrier["traceparent"]}

    # Facts

    def before(self, fact: Fact) -> None:
        """Begin what begins."""
        match fact:
            case events.RunEntered(run, name):
                self.enter(run, name)
            case events.OrderAccepted(number, _, traceparent, tracelink, run, name):
                self.enter(run, name)
                self._begin_round(number, _remote(traceparent), _remote(tracelink))
            case events.AttemptOpened(number):
                self._begin_round(number)
            case events.Selected(_, ids):
                self._selected += len(ids)
            case events.PhaseBegan(_, phase, ago):
                if phase == "train":
                    self._ids.promised, self._train = self._train, None
                span = self._tracer.start_span(phase, self._parent(), start_time=_time(ago))
                self._open_phases().append((span, context.attach(trace.set_span_in_context(span))))

    def after(self, fact: Fact) -> None:
        """Note what is known now, and end what ends."""
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
            case events.Reported(_, figures) if self._round is not None:
                self._round.set_attributes({f"fedround.metric.{name}": value for name, value in figures})
            case events.RoundEnded(outcome=outcome):
                self._end_round(outcome)
            case events.RoundCompleted(ids=ids, samples=samples, parameters=parameters):
                known = {"participants": len(ids), "samples": samples, "parameters": parameters}
                self._end_round("completed", {f"fedround.round.{name}": value for name, value in known.items()})
            case events.TrainingCompleted():  # after the evaluation of the final model, which is an attempt without a round
                self._end_round("evaluated")
            case events.AttemptDropped(timed_out=timed_out):
                self._end_round("timed_out" if timed_out else "failed")

    def _register(self) -> Span:
        """The registration that is under way, or a new one."""
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
        # Each thread has its own: a phase begins and ends on one thread.
        if not hasattr(self._phases, "open"):
            self._phases.open = []
        phases: list[tuple[Span, Token[Context]]] = self._phases.open
        return phases

    def _parent(self) -> Context:
        """What is under way on this thread, else the round."""
        if trace.get_current_span().get_span_context().is_valid:
            return context.get_current()
        return NONE if self._round is None else trace.set_span_in_context(self._round)

    # HTTP

    @contextmanager
    def client(self, method: str, url: str, path: str) -> Iterator["ClientSpan"]:
        """The span of one request of ours, of which `path` is the template."""
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
        """The span of one request to us; none of what is passed on, which would be traced for ever."""
        if path in wire.OTLP:
            yield ServerSpan(trace.INVALID_SPAN, method)
            return
        span = self._tracer.start_span(method, propagate.extract(headers, NONE), SpanKind.SERVER)
        if span.is_recording():
            path = _LONG_HEX.sub(lambda match: match[0][:8], printable(redact(path)))  # ids are told in other spellings, too
            span.set_attributes({"http.request.method": method, "url.path": path, "url.scheme": "http"})
        token = context.attach(trace.set_span_in_context(span))
        try:
            yield ServerSpan(span, method)
        finally:
            context.detach(token)
            span.end()


class _RunAttributes(SpanProcessor):
    """Says in each span, those of training code included, which run it belongs to."""

    attributes: Mapping[str, str] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See `SpanProcessor`."""
        span.set_attributes(self.attributes)


class _Ids(IdGenerator, threading.local):
    """Ids from the system's random numbers. The SDK takes them from `random`, which the participant's own code may seed:
    then all participants have the same ids, and each span changes the numbers that this code gets.
    """

    promised: int | None = None
    """The id of the next span of this thread."""
    _random = SystemRandom()

    def generate_trace_id(self) -> int:
        """1 to 2**128 - 1."""
        return self._random.randrange(1, 1 << 128)

    def generate_span_id(self) -> int:
        """1 to 2**64 - 1."""
        promised, self.promised = self.promised, None
        return promised or self._random.randrange(1, 1 << 64)

    def is_trace_id_random(self) -> bool:
        """All bits are, which samplers rely on."""
        return True


class ClientSpan:
    """A request that is under way. `headers` go with it."""

    def __init__(self, span: Span, headers: Mapping[str, str]) -> None:
        self._span = span
        self.headers = headers
        self.status: int | None = None

    def answered(self, status: int) -> None:
        """The head of an answer came."""
        self.status = status
        self._span.set_attribute("http.response.status_code", status)
        _failed(self._span, str(status) if status >= 400 else "")


class ServerSpan:
    """A request that is being served."""

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    def answered(self, route: str, status: int | None) -> None:
        """It was answered; without a status it was cut off. Only what is our fault is an error."""
        if route:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            _failed(self._span, str(status) if status >= 500 else "")


def _time(ago: float) -> int:
    """Nanoseconds since 1970."""
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
    """Tells a server that samples by its parents to be quiet as well."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
