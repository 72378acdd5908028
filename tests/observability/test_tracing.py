"""Traces: the spans of one process, and a federation with a collector that does not respond."""

import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from fedround import events
from fedround.errors import ConfigurationError, Unreachable
from fedround.http.client import CoordinatorClient
from fedround.observability import tracing
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.observability.otlp import exporters
from fedround.observability.traces import shorten_warnings, traces_enabled
from fedround.observability.tracing import Tracing
from fedround.participant.run import connected
from fedround.participant.terms import Terms
from fedround.tensors import measures
from support.federation import our_platform
from support.otlp import receiving
from support.peer import Peer, answer
from support.processes import Process, running
from support.silos import Plus1

ID = "12345678-aaaa-4bbb-8ccc-dddddddddddd"
TOKEN = "87654321-aaaa-4bbb-8ccc-dddddddddddd"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OK = 200


class Traced:
    """The spans of the facts and requests within the block."""

    def __init__(self, *, heartbeats: bool = True) -> None:
        self._memory = InMemorySpanExporter()
        self.tracing = Tracing("participant", "anna", [self._memory], heartbeats=heartbeats)

    def tell(self, *facts: events.Fact) -> None:
        for fact in facts:
            self.tracing.before(fact)
            self.tracing.after(fact)

    def ask(self, method: str, path: str, status: int | None = OK) -> dict[str, str]:
        """Make a request, and return its headers. Without a status, the peer is unreachable."""
        try:
            with self.tracing.client(method, f"http://peer:80{path.format(id=ID, token=TOKEN)}", path) as exchange:
                if status is None:
                    raise Unreachable("nobody there") from ConnectionRefusedError()
                exchange.answered(status)
        except Unreachable:
            pass
        return dict(exchange.headers)

    def finished(self) -> Sequence[ReadableSpan]:
        """The spans that have ended so far."""
        self.tracing._provider.force_flush()
        return self._memory.get_finished_spans()

    def spans(self) -> dict[str, ReadableSpan]:
        self.tracing.close()
        return {span.name: span for span in self._memory.get_finished_spans()}


def parent(span: ReadableSpan) -> str:
    return "" if span.parent is None else trace.format_span_id(span.parent.span_id)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return trace.format_trace_id(span.context.trace_id)


def own(span: ReadableSpan) -> str:
    assert span.context is not None
    return trace.format_span_id(span.context.span_id)


def test_the_resource_of_a_participant_has_its_name() -> None:
    traced = Traced()
    traced.tell(events.AttemptOpened(0, ID), events.TrainingCompleted(1))
    (span,) = traced.spans().values()
    found = span.resource.attributes
    names = ("service.name", "service.instance.id", "fedround.participant")
    assert [found.get(name) for name in names] == ["fedround-participant", "anna", "anna"]
    assert "fedround.participant" not in Tracing("platform", "host", [])._provider.resource.attributes


def test_a_round_of_a_participant_is_a_child_of_the_coordinators_and_parent_of_its_phases() -> None:
    traced = Traced()
    traced.tell(events.RoundJoined(3, repeated=False, traceparent=PARENT))
    traced.tracing.before(events.PhaseBegan(3, "download"))
    traced.ask("GET", "/{id}/{token}")
    traced.tracing.after(events.PhaseEnded(3, "download", 0.1))
    traced.tell(
        events.WeightsMeasured(3, "global", 100, measures.statistics(np.ones(5))),
        events.UpdateMeasured(3, 30, None),
        events.MetricsReported(3, (("loss", 0.5),)),
        events.PhaseEnded(3, "confirm", 0.25),
        events.RoundEnded(3, "completed", 1.0),
    )
    spans = traced.spans()
    round = spans["fedround.round"]
    assert round.context is not None
    assert trace.format_trace_id(round.context.trace_id) == PARENT.split("-")[1]
    assert parent(round) == PARENT.split("-")[2]
    assert dict(round.attributes or {}) == {
        "fedround.round.number": 3,
        "fedround.round.parameters": 5,
        "fedround.round.samples": 30,
        "fedround.metric.loss": 0.5,
        "fedround.round.outcome": "completed",
    }
    assert parent(spans["download"]) == parent(spans["confirm"]) == own(round)
    assert parent(spans["GET /{id}/{token}"]) == own(spans["download"])
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_failed_phase_is_an_error_and_does_not_leak_into_the_next_round() -> None:
    traced = Traced()
    traced.tell(events.RoundJoined(3, repeated=False, traceparent=None))
    traced.tell(events.PhaseBegan(3, "train"), events.PhaseEnded(3, "train", 0.1, "ValueError"))
    traced.tell(events.RoundEnded(3, "failed", 1.0))
    assert traced.tracing.ids() is None
    traced.tell(events.RoundJoined(4, repeated=False, traceparent=None), events.RoundEnded(4, "completed", 1.0))
    spans = traced.spans()
    assert (spans["train"].attributes or {})["error.type"] == "ValueError"
    assert parent(spans["fedround.round"]) == ""


def test_spans_of_requests_have_the_result_and_no_id_or_token() -> None:
    traced = Traced()
    traced.ask("GET", "/heartbeat/{id}", None)
    traced.ask("GET", "/heartbeat/{id}", 404)
    headers = traced.ask("POST", "/{id}/{token}")
    spans = traced.spans()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", headers["traceparent"])
    assert spans["POST /{id}/{token}"].attributes == {
        "http.request.method": "POST",
        "url.template": "/{id}/{token}",
        "url.full": "http://peer:80/12345678/***",
        "server.address": "peer",
        "server.port": 80,
        "http.response.status_code": 200,
    }
    again = spans["GET /heartbeat/{id}"].attributes or {}
    assert (again["http.request.resend_count"], again["http.response.status_code"], again["error.type"]) == (1, 404, "404")


@pytest.mark.parametrize("there", [True, False])
def test_an_exchange_outside_of_rounds_has_the_exemplar_of_its_own_span(there: bool) -> None:
    traced = Traced()
    metrics = ParticipantMetrics(exemplar=traced.tracing.ids)
    with Peer(answer("200 OK", b'{"round":null,"state":"stand_by"}')) as peer:
        url = peer.url if there else "http://127.0.0.1:1"
        with closing(CoordinatorClient(url, observe=metrics, trace=traced.tracing.client)) as client, suppress(Unreachable):
            client.heartbeat(ID, wait=0)
    body, _ = metrics.scrape("application/openmetrics-text; version=1.0.0")
    exemplars = re.findall(r'^http_client_request_duration_seconds_bucket.*# {.*span_id="(\w+)"', body.decode(), re.MULTILINE)
    assert exemplars == [own(traced.spans()["GET /heartbeat/{id}"])]
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_registration_has_its_attempts_below_it() -> None:
    traced = Traced()
    traced.ask("GET", "/rendez_vous", None)
    traced.ask("GET", "/rendez_vous")
    traced.tell(events.Registered(ID, "start"))
    spans = traced.spans()
    assert parent(spans["GET /rendez_vous"]) == own(spans["fedround.register"])
    assert (spans["fedround.register"].attributes or {})["fedround.register.reason"] == "start"


def test_a_registration_ends_with_the_training_and_the_next_one_is_another_trace() -> None:
    traced = Traced()
    for _ in range(2):
        traced.ask("GET", "/rendez_vous")
        traced.tell(events.RegistrationRefused())
    registrations = [span for span in traced.finished() if span.name == "fedround.register"]
    assert len({span.context.trace_id for span in registrations if span.context}) == 2
    assert all(span.status.is_unset for span in registrations)


def test_failing_registrations_are_one_trace_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, failed = Traced(), events.Retrying("/rendez_vous", "unreachable", 1.5)
    for _ in range(3):
        traced.ask("GET", "/rendez_vous", None)
        traced.tell(events.ContactLost("nobody there"), failed)
    assert {span.name for span in traced.finished()} == {"GET /rendez_vous"}
    monkeypatch.setattr(tracing, "REGISTER_SECONDS", 0.0)
    for _ in range(3):
        traced.tell(failed)
        traced.ask("GET", "/rendez_vous", None)
    registrations = [span for span in traced.finished() if span.name == "fedround.register"]
    assert [(span.attributes or {})["error.type"] for span in registrations] == ["unreachable"] * 3
    assert parent(traced.finished()[-1]) not in map(own, registrations)
    assert not any(span.status.is_ok for span in registrations)
    assert (traced.spans()["fedround.register"].attributes or {}).keys() == set()  # it was asked to stop


def test_traces_of_heartbeats_outside_of_rounds_can_be_disabled_on_both_ends() -> None:
    traced = Traced(heartbeats=False)
    assert traced.ask("GET", "/heartbeat/{id}")["traceparent"].endswith("-00")
    traced.tell(events.RoundJoined(3, repeated=False, traceparent=None))
    assert traced.ask("GET", "/heartbeat/{id}")["traceparent"][-1] in "13"
    traced.tell(events.RoundEnded(3, "completed", 1.0))
    assert set(traced.spans()) == {"fedround.round", "GET /heartbeat/{id}"}


def test_the_round_of_a_coordinator_ends_with_its_attempt_and_sends_its_traceparent() -> None:
    traced = Traced()
    assert traced.tracing.round_context() == {}
    traced.tell(events.AttemptOpened(3, ID), events.Selected(3, (ID,) * tracing.MAX_CHILDREN))
    told = traced.tracing.round_context()
    traced.tell(events.AttemptDropped(3, ID, 1, "too late", timed_out=True))
    assert traced.tracing.round_context() == {}
    dropped = traced.spans()["fedround.round"]
    assert told.keys() == {"traceparent"}
    assert told["traceparent"].split("-")[2] == own(dropped)
    assert (dropped.attributes or {})["fedround.round.outcome"] == "timed_out"
    assert not dropped.status.is_ok


def test_with_more_than_100_selected_participants_their_traces_are_only_linked() -> None:
    traced = Traced()
    traced.tell(events.AttemptOpened(3, ID), events.Selected(3, (ID,) * 99), events.Selected(3, (ID, ID)))
    crowded = traced.tracing.round_context()
    traced.tell(events.AttemptDropped(3, ID, 1, "too few"), events.AttemptOpened(3, ID), events.Selected(3, (ID,)))
    assert traced.tracing.round_context().keys() == {"traceparent"}
    assert crowded.keys() == {"tracelink"}


@pytest.mark.parametrize("link", [PARENT, "nonsense"])
def test_a_linked_round_is_the_root_of_its_own_trace(link: str) -> None:
    traced = Traced()
    traced.tell(events.RoundJoined(3, repeated=False, traceparent=None, tracelink=link), events.RoundEnded(3, "completed", 1.0))
    round = traced.spans()["fedround.round"]
    assert parent(round) == ""
    assert [trace.format_span_id(link.context.span_id) for link in round.links] == [PARENT.split("-")[2]] * (link == PARENT)


def test_the_span_of_a_served_request_is_a_child_of_the_sent_one() -> None:
    traced = Traced()
    path = f"/{ID}/{TOKEN.replace('-', '')}"
    with traced.tracing.server("GET", path, {"traceparent": PARENT}) as served:
        assert (traced.tracing.ids() or {})["trace_id"] == PARENT.split("-")[1]
        served.answered("/{id}/{token}", 404)
    with traced.tracing.server("GET", "/nowhere", {}) as served:
        served.answered("", None)
    spans = traced.spans()
    span = spans["GET /{id}/{token}"]
    assert parent(span) == PARENT.split("-")[2]
    assert span.status.is_unset
    assert (span.attributes or {})["url.path"] == "/12345678/87654321"
    assert "http.response.status_code" not in (spans["GET"].attributes or {})


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"}, False),
    ],
)
def test_traces_are_recorded_only_with_an_exporter(environ: dict[str, str], wanted: bool) -> None:
    assert traces_enabled(environ) is wanted


def test_exporters_are_configured_by_the_variables() -> None:
    (otlp,) = exporters({})
    (console,) = exporters({"OTEL_TRACES_EXPORTER": "console"})
    assert [type(exporter).__name__ for exporter in (otlp, console)] == ["OTLPSpanExporter", "ConsoleSpanExporter"]
    otlp.shutdown()
    for environ, complaint in [
        ({"OTEL_TRACES_EXPORTER": "nonsense"}, "unknown exporter nonsense: otlp, console or none?"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "install opentelemetry-exporter-otlp-proto-grpc"),
    ]:
        with pytest.raises(ConfigurationError, match=complaint):
            exporters(environ)


def test_a_failing_exporter_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    shorten_warnings()
    with caplog.at_level(logging.WARNING, "fedround"):
        for _ in range(3):
            logging.getLogger("opentelemetry.sdk.trace.export").error("no connection to %s", f"http://collector/{ID}/{TOKEN}")
    assert [record.getMessage() for record in caplog.records] == ["traces: no connection to http://collector/12345678/***"]


# Whole federations


@pytest.mark.parametrize("long_poll", [15.0, 0.0], ids=["held", "polled"])
def test_in_large_rounds_each_participant_has_its_own_trace_with_all_its_requests(
    long_poll: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_CHILDREN", 1)
    platform, silos = Traced(), [Traced(), Traced()]

    def take_part(name: str, silo: Traced) -> None:
        observers = [silo.tracing.before, silo.tracing.after]
        terms = Terms(name=name, heartbeat_period=0.05, long_poll=long_poll, observers=observers)
        with connected(Plus1(), p.url, terms, trace=silo.tracing.client) as runtime:
            runtime.run()

    with our_platform(rounds=1, min_clients=2, traces=platform.tracing) as p:
        threads = [threading.Thread(target=take_part, args=(f"silo-{n}", silo)) for n, silo in enumerate(silos)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (root,) = (span for span in platform.finished() if span.name == "fedround.round")
    for silo in silos:
        round = silo.spans()["fedround.round"]
        assert parent(round) == ""
        assert [trace.format_span_id(link.context.span_id) for link in round.links] == [own(root)]
        served = {span.name for span in platform.finished() if trace_of(span) == trace_of(round)}
        assert served >= {"GET /{id}/{token}", "POST /{id}/{token}"}
    assert all(span.kind is not SpanKind.SERVER for span in platform.finished() if trace_of(span) == trace_of(root))


@contextmanager
def federation(rounds: int, **environ: str) -> Iterator[tuple[Process, Process, Sequence[Process]]]:
    """Run a coordinator, an aggregator and two participants."""
    with ExitStack() as stack:
        aggregator = stack.enter_context(running("aggregator", **environ))
        urls = {
            "COORDINATOR_AGGREGATOR_URL": aggregator.url("AGGREGATOR_PORT"),
            "COORDINATOR_AGGREGATOR_INTERNAL_URL": aggregator.url("AGGREGATOR_INTERNAL_PORT"),
        }
        plan = {"COORDINATOR_ROUNDS": str(rounds), "COORDINATOR_MIN_CLIENTS": "2"}
        coordinator = stack.enter_context(running("coordinator", **urls, **plan, **environ))
        joining = {
            "PARTICIPANT_COORDINATOR_URL": coordinator.url("COORDINATOR_PORT"),
            "PARTICIPANT_CLASS": "fedround.demo:HousePrices",
            "PARTICIPANT_AFTER_FINISH": "wait",
        }
        silos = [stack.enter_context(running("participant", PARTICIPANT_NAME=f"silo-{n}", **joining, **environ)) for n in range(2)]
        for silo in silos:
            silo.said("^finished")
        yield coordinator, aggregator, silos


@pytest.mark.timeout(120)
@pytest.mark.parametrize("collector", ["dead", "deaf"])
def test_a_hanging_collector_delays_no_round_and_an_exit_by_at_most_2_seconds(collector: str) -> None:
    answers = threading.Event()
    with ExitStack() as stack:
        if collector == "deaf":
            url, _ = stack.enter_context(receiving(answers=answers))
        else:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                url = f"http://127.0.0.1:{gone.getsockname()[1]}"
        began = time.monotonic()
        with federation(20, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="100") as (coordinator, aggregator, silos):
            assert time.monotonic() - began < 30
            for process in (*silos, coordinator, aggregator):
                told = time.monotonic()
                process.send(signal.SIGTERM)
                assert process.wait() == 0
                assert time.monotonic() - told < 6
                if collector == "dead":
                    assert 1 <= process.log.count("traces: ") <= 2, "one line a minute for each complaint"
                assert "Traceback" not in process.log
