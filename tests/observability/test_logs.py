"""Log lines: which facts make one, what it shows, and what it never shows."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround import events
from fedround.common import wire
from fedround.events import Fact
from fedround.observability import logs
from fedround.observability.logs import WARNINGS, JsonFormatter, LogObserver, TextFormatter
from fedround.tensors.measures import statistics
from fedround.tensors.statistics import Change, Statistics

ID = "12345678-aaaa-bbbb-cccc-dddddddddddd"
VALUES: dict[object, object] = {
    str: "word",
    str | None: "word",
    int: 7,
    int | None: 7,
    float: 1.5,
    bool: True,
    tuple[str, ...]: (ID, ID),
    tuple[tuple[str, float], ...]: (("loss", 0.25),),
    tuple[events.Contribution, ...]: (events.Contribution(ID, 1, 0.5, {"loss": 0.25}),),
    Statistics: statistics(np.ones(2)),
    Change | None: Change(0.5, 1.0),
}
KINDS = sorted(Fact.__subclasses__(), key=lambda kind: kind.__name__)


def example(kind: type[Fact]) -> Fact:
    hints = get_type_hints(kind, localns={"Change": Change, "Statistics": Statistics})
    return kind(**{field.name: ID if field.name in ("id", "attempt") else VALUES[hints[field.name]] for field in fields(kind)})


@pytest.fixture(autouse=True)
def _no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the run, which describes every later line of a process."""
    monkeypatch.setattr(logs, "_CONTEXT", {})


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, "fedround"):
        yield caplog


def told(log: pytest.LogCaptureFixture, *facts: Fact) -> list[tuple[str, str]]:
    """Return the lines at INFO and above for these facts of one participant or service."""
    observer = LogObserver()
    for fact in facts:
        observer(fact)
    return [(record.levelname, record.getMessage()) for record in log.records if record.levelno >= logging.INFO]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_fact_is_a_line_with_shortened_ids_in_both_formats(kind: type[Fact], log: pytest.LogCaptureFixture) -> None:
    LogObserver()(example(kind))
    (record,) = log.records
    line = JsonFormatter().format(record)
    assert json.loads(line)["event"] == kind.__name__
    assert ID not in line + TextFormatter(colours=False).format(record)


def test_a_json_line_has_time_level_text_and_the_facts_fields(log: pytest.LogCaptureFixture) -> None:
    LogObserver()(events.RoundCompleted(3, ID, (ID, ID), 1, 20, 5, 1.5, (("loss", 0.25),), late=2))
    line = json.loads(JsonFormatter().format(log.records[0]))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "fedround",
        "message": "round 3 completed in 1.50 s: 2 updates, 1 dropped, 2 late, 20 samples, 5 parameters, loss=0.25",
        "event": "RoundCompleted",
        "round": 3,
        "attempt": "12345678",
        "participants": 2,
        "dropped": 1,
        "samples": 20,
        "parameters": 5,
        "seconds": 1.5,
        "metrics": {"loss": 0.25},
        "late": 2,
    }


def test_a_round_of_a_participant_is_a_few_lines(log: pytest.LogCaptureFixture) -> None:
    lines = told(
        log,
        events.ContactMade(),
        events.Registered(ID, "start"),
        events.StateChanged("waiting", None, draining=False),
        events.RoundJoined(0, repeated=False, traceparent=None),
        events.StateChanged("training", 0, draining=False),
        events.PhaseEnded(0, "download", 0.1),
        events.MetricsReported(0, (("loss", 0.5),)),
        events.ExchangeEnded("POST", "/{id}/{token}", 200, None, 0.1, 128, 0),
        events.RoundEnded(0, "completed", 1.25),
        events.StateChanged("finished", None, draining=False),
    )
    assert [text for _, text in lines] == [
        "in contact with the coordinator",
        "registered as 12345678",
        "round 0: selected",
        "round 0: loss=0.5",
        "round 0 completed after 1.25 s",
        "finished: training is complete",
    ]


def test_failed_transfers_are_logged_once_and_their_recovery_too(log: pytest.LogCaptureFixture) -> None:
    lost, sent = (
        events.TransferLost("GET there/{id}/{token}: refused"),
        events.ExchangeEnded("GET", wire.UPDATE, 200, None, 0.1, 0, 9),
    )
    failed = events.ExchangeEnded("GET", wire.UPDATE, None, "ConnectError", 0.1, 0, 0)
    assert told(log, sent, failed, lost, failed, lost, sent, sent, lost) == [
        ("WARNING", "no contact with the aggregator: GET there/{id}/{token}: refused; retrying"),
        ("INFO", "in contact with the aggregator"),
        ("WARNING", "no contact with the aggregator: GET there/{id}/{token}: refused; retrying"),
    ]


def test_a_participant_that_is_asked_to_stop_logs_its_state(log: pytest.LogCaptureFixture) -> None:
    training, stopped = events.StateChanged("training", 0, draining=True), events.StateChanged("stopped", None, draining=True)
    assert [text for _, text in told(log, training, stopped)] == ["draining: asked to stop while training", "stopped"]


def test_a_lost_contact_is_logged_once_and_its_return_too(log: pytest.LogCaptureFixture) -> None:
    lost, retrying, made = (
        events.ContactLost("refused"),
        events.Retrying("/heartbeat/{id}", "unreachable", 0.5),
        events.ContactMade(),
    )
    assert told(log, made, made, lost, retrying, lost, retrying, made, made) == [
        ("INFO", "in contact with the coordinator"),
        ("WARNING", "no contact with the coordinator: refused; retrying"),
        ("INFO", "in contact with the coordinator"),
    ]


def test_a_lost_aggregator_is_logged_once_and_its_return_too(log: pytest.LogCaptureFixture) -> None:
    trouble, again = events.AggregatorUnreachable("open", "refused"), events.AggregatorUnreachable("close", "time-out")
    assert told(log, trouble, again, events.AggregatorReached()) == [
        ("WARNING", "no contact with the aggregator: refused; retrying"),
        ("INFO", "in contact with the aggregator"),
    ]


def test_facts_that_need_an_operator_are_warnings(log: pytest.LogCaptureFixture) -> None:
    lines = told(
        log,
        events.RoundEnded(1, "failed", 0.5, "ValueError in train_round"),
        events.Revoked(1, ID, "deadline"),
        events.UpdateReceived(ID, "invalid", 12, "not a .npy"),
        events.UpdateReceived(ID, "accepted", 12),
        events.AttemptDropped(1, ID, 2, "nobody left"),
        events.UploadFailed(ID, "cut"),
        events.ModelsLost(5, 1),
        events.ModelsLost(5, None),
        events.Suspended(17.25),
    )
    assert [level for level, _ in lines] == ["WARNING"] * 8
    assert lines[0][1] == "round 1 failed after 0.50 s: ValueError in train_round"
    assert [text.rpartition(": ")[2] for _, text in lines[-3:]] == [
        "training continues from the model of round 1",
        "training continues without a model",
        "this process was suspended for 17.2 s; heartbeat time-outs were extended",
    ]


def test_a_late_participant_is_not_a_warning(log: pytest.LogCaptureFixture) -> None:
    assert told(log, events.Revoked(1, ID, "late", "anna")) == [
        ("INFO", "round 1: participant anna (12345678) was late: the round closed by its quorum")
    ]


def test_the_last_warnings_are_kept_with_their_times() -> None:
    log, began = LogObserver(), time.time()
    for number in range(WARNINGS + 1):
        log(events.Revoked(number, ID, "deadline", "anna", seconds=60, phase="training"))
        log(events.ParticipantGone(ID, "anna", "left"))
    log(events.SaveFailed("the model", f"no room for {ID}"))
    assert len(log.warnings) == WARNINGS
    assert log.warnings[0]["text"] == "round 2: dropped participant anna (12345678) after 60.0 s (training): missed the deadline"
    assert log.warnings[-1]["text"] == "the model cannot be written to the data directory; retrying: no room for 12345678"
    assert all(began - 1 <= warning["time"] <= time.time() + 1 for warning in log.warnings)


def test_a_full_disk_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    log = LogObserver(clock=lambda: now)
    for number in range(121):
        log(events.SaveFailed(f"the model of round {number}", "no space"))
        now += 1
    assert [record.getMessage().partition(" cannot")[0] for record in caplog.records] == [
        f"the model of round {n}" for n in (0, 60, 120)
    ]
    log(events.StateSaved(0.1))
    log(events.SaveFailed("the model of round 121", "no space"))
    assert len(log.warnings) == 4


def test_an_exception_is_part_of_the_json_line() -> None:
    try:
        raise ValueError("wrong shape")
    except ValueError:
        record = logging.LogRecord("user", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())
    assert "ValueError: wrong shape" in json.loads(JsonFormatter().format(record))["exception"]


@pytest.mark.parametrize("formatter", [TextFormatter(colours=True), JsonFormatter()])
def test_ids_and_tokens_in_lines_of_libraries_are_shortened(formatter: logging.Formatter) -> None:
    token = ID.replace("1", "9")
    record = logging.LogRecord("other", logging.INFO, __file__, 1, "GET http://host/%s/%s", (ID, token), None)
    line = formatter.format(record)
    assert "http://host/12345678/***" in line
    assert token[:8] not in line


HOSTILE = st.text(
    st.sampled_from("a \n\r\t\x00\x1b[2J\x7f\x85\x9b\u200b\u2028\u202e\u2066\ufeff\ud800\U000e0041") | st.characters(codec=None),
    max_size=40,
)
"""Texts of peers: any character, including lone surrogates."""


def shown(record: logging.LogRecord, formatter: logging.Formatter) -> list[str]:
    """Return the printed lines, and every text in them if they are JSON."""
    text = formatter.format(record)
    if not isinstance(formatter, JsonFormatter):
        return text.split("\n")
    line = json.loads(text)
    lines = str(line.pop("exception", "")).split("\n")
    return [*text.split("\n"), *lines, *(str(value) for value in line.values())]


@pytest.mark.parametrize("formatter", [TextFormatter(colours=False), JsonFormatter()], ids=["text", "json"])
@given(text=HOSTILE)
def test_texts_of_peers_add_no_line_and_no_control_character_to_the_log(text: str, formatter: logging.Formatter) -> None:
    told = [logging.LogRecord("x", logging.INFO, __file__, 1, "refused: %s", (text,), None)]
    log = LogObserver()
    with collected() as records:
        for kind in KINDS:
            fact = example(kind)
            log(replace(fact, **{f.name: text for f in fields(fact) if getattr(fact, f.name) == "word"}))
    for record in told + records:
        lines = shown(record, formatter)
        assert len(lines) == 1 or isinstance(formatter, JsonFormatter)
        assert all(line.isprintable() for line in lines)
    assert all(warning["text"].isprintable() for warning in log.warnings)


@pytest.mark.parametrize("formatter", [TextFormatter(colours=False), JsonFormatter()], ids=["text", "json"])
@given(text=HOSTILE)
def test_the_text_of_an_exception_cannot_look_like_a_log_line(text: str, formatter: logging.Formatter) -> None:
    try:
        raise ValueError(f"{text}\n2026-01-01 00:00:00.000 ERROR   forged")
    except ValueError:
        record = logging.LogRecord("user", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())
    for before in (None, "as another formatter\nhad it \x1b[2J"):
        record.exc_text = before
        lines = shown(record, formatter)
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith(("2026-01-01", "as another", "had it")) for line in lines)


@contextmanager
def collected() -> Iterator[list[logging.LogRecord]]:
    """Collect the records of `fedround` within the block. pytest does not see them, because its reports cannot hold every text."""
    records: list[logging.LogRecord] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, logger = Collecting(), logging.getLogger("fedround")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_colours_are_only_for_terminals() -> None:
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "careful", None, None)
    assert "\x1b" in TextFormatter(colours=True).format(record)
    assert "\x1b" not in TextFormatter(colours=False).format(record)


def test_the_log_is_on_stderr_from_its_level_and_without_http_libraries() -> None:
    program = """
import logging
from fedround.observability.logs import configure
configure("json", "debug", service="fedround-participant", participant="anna")
logging.getLogger("mine").debug("seen")
for name in ("httpx", "httpcore.http11", "uvicorn.access"):
    logging.getLogger(name).info("GET /id/token")
configure("text", "warning")
logging.getLogger("mine").info("not seen")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert (found["message"], found["service"], found["participant"]) == ("seen", "fedround-participant", "anna")


def test_a_limit_that_is_reached_repeatedly_is_one_line_a_minute(log: pytest.LogCaptureFixture) -> None:
    now = 100.0
    observer, cut = LogObserver(clock=lambda: now), events.ConnectionClosed("public", "port_limit")
    for _ in range(3):
        observer(cut)
    observer(events.ConnectionClosed("ops", "head"))
    observer(events.RequestThrottled("public"))
    now += 61
    observer(cut)
    line = "public port: the limit of connections is reached; connections closed since the last such line: "
    lines = [(record.levelname, record.getMessage()) for record in log.records if record.levelno >= logging.INFO]
    throttled = "public port: clients send too many requests; requests refused since the last such line: 1"
    assert [line for level, line in lines if level == "WARNING"] == [line + "1", throttled, line + "3"]
    assert dict(lines)["INFO"].startswith("ops port: a request's header was too long or too slow; ")


@pytest.mark.parametrize(
    "config",
    [
        {"version": 1, "root": {"level": "WARNING"}},
        {"version": 1, "disable_existing_loggers": False, "root": {"level": "ERROR", "handlers": []}},
    ],
)
def test_a_service_continues_to_log_when_user_code_configures_logging(config: dict[str, Any]) -> None:
    program = f"""
import logging.config
from fedround import events
from fedround.observability import logs
logs.configure("text", "info")
observe = logs.LogObserver(keep=True)
logging.config.dictConfig({config!r})
observe(events.Registered("12345678-aaaa", "start"))
logging.getLogger("fedround.observability").warning("of another logger of ours")
logging.getLogger("theirs").info("theirs")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    first, second = done.stderr.splitlines()
    assert first.endswith("registered as 12345678")
    assert second.endswith("of another logger of ours")


def test_a_program_continues_to_log_when_it_configures_logging_again() -> None:
    program = """
import logging.config
from fedround import events
from fedround.observability import logs
observe = logs.LogObserver()
logging.config.dictConfig({"version": 1, "root": {"level": "WARNING"}})
observe(events.Registered("12345678-aaaa", "start"))
observe(events.ContactLost("so"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stderr == "no contact with the coordinator: so; retrying\n"
