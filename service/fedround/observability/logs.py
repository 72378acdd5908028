"""The observer that logs facts, and the formats of its log lines. Only the command line calls `configure`."""

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Literal

from fedround import events
from fedround.common.text import indented, printable, redact, short
from fedround.events import Fact
from fedround.observability.contact import Contacts

LOG = logging.getLogger("fedround")

# These libraries log whole URLs, which contain ids and tokens.
QUIET = ("httpcore", "httpx", "uvicorn")

WARNINGS = 20
"""Number of warnings to keep."""
QUIET_FOR = 60.0
"""Seconds between two lines about the same limit or the same full disk."""

_CONTEXT: dict[str, str] = {}
"""Fields of every JSON line of this process: see `describe`."""

_COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}

_Line = tuple[int, str]


class LogObserver:
    """Logs what an operator should know at INFO and above, and all other facts at DEBUG.

    Args:
        keep: Whether to keep the root logger's current level and handlers for our log, even if training code changes them. For a
            service that runs training code in its own process.
        clock: Returns monotonic seconds.
    """

    def __init__(self, *, keep: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        root = logging.getLogger()
        self._handlers, self._level = (root.handlers[:], root.level) if keep else ([], logging.NOTSET)
        self._clock = clock
        self._contacts = Contacts(clock)
        self._limits: dict[Fact, tuple[float, int]] = {}
        self._warnings: deque[tuple[float, str]] = deque(maxlen=WARNINGS)
        self._not_kept_until = 0.0

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """The last lines at WARNING and above, as JSON-able data: `time` in Unix seconds, and `text`."""
        return [{"time": round(when, 3), "text": text} for when, text in self._warnings.copy()]

    def __call__(self, fact: Fact) -> None:
        """Log `fact`."""
        self._restore()
        match fact:
            case events.RunStarted(run, name) | events.RoundJoined(run_id=run, run_name=name) if run:
                describe(run=name, run_id=run)
        if self._is_repeated(fact):
            return
        line = self._contacts.line(fact) or self._limit_line(fact) or _participant_line(fact) or _platform_line(fact)
        if line is not None:
            LOG.log(line[0], "%s", line[1], extra={"fact": fact})
            if line[0] >= logging.WARNING:
                self._warnings.append((time.time(), printable(redact(line[1]))))
        elif LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("%s", _fields(fact), extra={"fact": fact})

    def _is_repeated(self, fact: Fact) -> bool:
        """Return whether a line would repeat one: a service retries a full disk every second, and logs it once a minute."""
        now = self._clock()
        match fact:
            case events.StateSaved():
                self._not_kept_until = 0.0
            case events.SaveFailed() if now < self._not_kept_until:
                return True
            case events.SaveFailed():
                self._not_kept_until = now + QUIET_FOR
        return False

    def _restore(self) -> None:
        """Undo `logging.config`, which disables all loggers that it does not name and replaces the root logger's handlers."""
        if LOG.disabled:
            for name, logger in LOG.manager.loggerDict.items():
                if name.partition(".")[0] == LOG.name and isinstance(logger, logging.Logger):
                    logger.disabled = False
        if self._handlers and LOG.propagate and logging.getLogger().handlers != self._handlers:
            LOG.handlers, LOG.propagate = self._handlers, False
            LOG.setLevel(self._level)

    def _limit_line(self, fact: Fact) -> _Line | None:
        """Return a line immediately, then once a minute: peers decide how often they reach a limit."""
        match fact:
            case events.ConnectionClosed(port, reason):
                level = logging.INFO if reason == "head" else logging.WARNING  # browsers leave connections unused too
                what = f"{_CUT.get(reason, reason)}; connections closed"
            case events.RequestThrottled(port):
                level, what = logging.WARNING, "clients send too many requests; requests refused"
            case _:
                return None
        until, since = self._limits.get(fact, (0.0, 0))
        now = time.monotonic()
        self._limits[fact] = (until, since + 1) if now < until else (now + QUIET_FOR, 0)
        if now < until:
            return None
        return level, f"{port} port: {what} since the last such line: {since + 1}"


_CUT = {
    "port_limit": "the limit of connections is reached",
    "address_limit": "the limit of connections from one address is reached",
    "head": "a request's header was too long or too slow",
    "pipeline": "a client pipelined too many requests",
    "slow": "a client read a response too slowly",
}


def _participant_line(fact: Fact) -> _Line | None:
    match fact:
        case events.StateChanged(state=state, draining=draining) if draining or state in ("finished", "stopped"):
            ended = {"finished": "finished: training is complete", "stopped": "stopped"}
            return logging.INFO, ended.get(state, f"draining: asked to stop while {state}")
        case events.Registered(id, reason):
            return logging.INFO, f"registered as {short(id)}" + ("" if reason == "start" else f" ({reason})")
        case events.RoundJoined(number, train=False):
            return logging.INFO, f"evaluating the final model, after {number} rounds"
        case events.RoundJoined(number, repeated):
            return logging.INFO, f"round {number}: " + ("asked for the same update again" if repeated else "selected")
        case events.ShardAssigned(index, count):
            return logging.INFO, f"training on shard {index}/{count}"
        case events.RoundEnded(_, "evaluated", seconds):
            return logging.INFO, f"evaluated the final model in {seconds:.2f} s"
        case events.RoundEnded(number, outcome, seconds, reason):
            level = logging.WARNING if outcome in ("failed", "refused") else logging.INFO
            return level, f"round {number} {outcome} after {seconds:.2f} s" + (f": {reason}" if reason else "")
        case events.MetricsReported(number, metrics):
            return logging.INFO, f"round {number}: {_metrics(metrics)}"
        case events.WorkerEnded(_, reason, pause):
            return logging.WARNING, f"the training process {reason}; starting another one" + (f" in {pause:.1f} s" if pause else "")
    return None


def _platform_line(fact: Fact) -> _Line | None:
    match fact:
        case events.RunStarted(id, name):
            return logging.INFO, f"run {name} ({short(id)})"
        case events.ParticipantJoined(id, name):
            return logging.INFO, f"participant {name} joined as {short(id)}"
        case events.ParticipantGone(id, name, "failed", detail):
            return logging.WARNING, f"participant {name} ({short(id)}) left because of a failure: {detail}"
        case events.ParticipantGone(id, name, "replaced"):
            return logging.INFO, f"participant {name} ({short(id)}) was replaced by a newer registration"
        case events.ParticipantGone(id, name, "silent"):
            return logging.WARNING, f"participant {name} ({short(id)}) timed out: it missed its heartbeats"
        case events.ParticipantGone(id, name):
            return logging.INFO, f"participant {name} ({short(id)}) left"
        case events.SatOut(number, name, failures, rounds, reason):
            many = "1 round" if rounds == 1 else f"{rounds} rounds"
            return logging.WARNING, f"participant {name} sits out {many} after {failures} consecutive failures: {reason}"
        case events.QuorumRaised(number, asked, selected, min_clients):
            return logging.WARNING, (
                f"round {number} waits for all {selected} participants, although the quorum is {asked}: lower "
                f"COORDINATOR_MIN_CLIENTS={min_clients} to {asked} so that slow participants do not delay rounds"
            )
        case events.ShardsChanged(warning=str(warning)) if warning:
            return logging.WARNING, warning
        case events.ShardsChanged(count, standing_by=standing_by):
            more = f"; {standing_by} participants stand by" if standing_by else ""
            return logging.INFO, f"each of the {count} shards has one participant{more}"
        case events.Selected(_, ids, False):
            return logging.INFO, f"{len(ids)} participants evaluate the final model"
        case events.Selected(number, ids):
            return logging.INFO, f"round {number}: {len(ids)} participants selected"
        case events.Revoked(number, id, "late", name):
            return logging.INFO, f"round {number}: participant {name} ({short(id)}) was late: the round closed by its quorum"
        case events.Revoked(number, id, reason, name, detail, seconds, phase):
            return (
                logging.WARNING,
                f"round {number}: dropped participant {name} ({short(id)}) after {seconds:.1f} s ({phase}): {detail or reason}",
            )
        case events.AttemptDropped(number, _, counted, reason, _, _, pause):
            return logging.WARNING, f"round {number} restarts in {pause:g} s; {counted} counted updates discarded: {reason}"
        case events.RoundCompleted(number, _, ids, dropped, samples, parameters, seconds, metrics, late=late):
            parts = [
                f"{len(ids)} updates",
                f"{dropped} dropped" if dropped else "",
                f"{late} late" if late else "",
                f"{samples} samples",
                f"{parameters} parameters" if parameters else "",
                _metrics(metrics),
            ]
            return logging.INFO, f"round {number} completed in {seconds:.2f} s: " + ", ".join(filter(None, parts))
        case events.Evaluated(number, _, metrics, lowest, highest, members):
            low, high = dict(lowest), dict(highest)
            means = " ".join(f"{name}={value:.6g} ({low[name]:.6g} to {high[name]:.6g})" for name, value in metrics)
            return logging.INFO, f"{_model(number)} evaluated by {len(members)}: {means}"
        case events.ServerEvaluated(number, _, metrics):
            return logging.INFO, f"{_model(number)} evaluated by the aggregator: {_metrics(metrics)}"
        case events.FinalNotEvaluated(number, seconds):
            return (
                logging.WARNING,
                f"the aggregator did not evaluate the final model within {seconds:g} s; the run ends without it: round {number}",
            )
        case events.ModelEvaluated(function, number, _, metrics, seconds):
            return logging.INFO, f"{_model(number)} evaluated by {function} in {seconds:.3f} s: {_metrics(metrics)}"
        case events.ModelsLost(number, newest):
            there = "without a model" if newest is None else f"from the model of round {newest}"
            return logging.WARNING, f"the aggregator has lost the model of round {number}: training continues {there}"
        case events.ModelsRolledBack(number, removed):
            return (
                logging.WARNING,
                f"rolled back: the model of round {number} is the newest, {removed} later models removed",
            )
        case events.RolledBack(number, newest):
            return logging.WARNING, f"rolled back in round {number}: training continues from the model of round {newest}"
        case events.Suspended(seconds):
            return logging.WARNING, f"this process was suspended for {seconds:.1f} s; heartbeat time-outs were extended"
        case events.TrainingCompleted(rounds, reason):
            return logging.INFO, f"training complete after {rounds} rounds" + (f", stopped early: {reason}" if reason else "")
        case events.UpdateReceived(id, outcome, size, reason) if outcome != "accepted":
            level = logging.INFO if outcome == "repeated" else logging.WARNING
            return level, f"update of {short(id)} ({size} bytes): {outcome}" + (f", {reason}" if reason else "")
        case events.Dominated(number, id, share):
            return logging.WARNING, f"round {number}: one update has {share:.1%} of all samples, that of {short(id)}"
        case events.UploadFailed(id, reason):
            return logging.WARNING, f"update of {short(id)} did not arrive completely: {reason}"
        case events.SaveFailed(what, reason):
            return logging.ERROR, f"{what} cannot be written to the data directory; retrying: {reason}"
        case events.Aggregated(number, updates, parameters, seconds):
            what = f"{parameters} parameters" if parameters else "a model"
            return logging.INFO, f"round {number}: {what} aggregated from {updates} updates in {seconds:.3f} s"
    return None


def _model(round: int | None) -> str:
    return "initial model" if round is None else f"model of round {round}"


def _metrics(metrics: tuple[tuple[str, float], ...]) -> str:
    return " ".join(f"{name}={value:.6g}" for name, value in metrics)


def _fields(fact: Fact) -> dict[str, Any]:
    """Return a fact's fields for JSON: ids are shortened, and a list of ids becomes a number."""
    line: dict[str, Any] = {"event": type(fact).__name__}
    for field in fields(fact):
        value = getattr(fact, field.name)
        match field.name:
            case "id" | "attempt":
                line[field.name] = short(value)
            case "ids":
                line["participants"] = len(value)
            case "run_id" | "run_name":
                continue  # in every line
            case "members":
                continue  # too long for a line, with one entry for each participant: `fedround history` has them
            case "metrics":
                line["metrics"] = dict(value)
            case _:
                line[field.name] = printable(value) if isinstance(value, str) else value
    return line


class TextFormatter(logging.Formatter):
    """A text line: time, level, message; coloured on a terminal."""

    default_msec_format = "%s.%03d"

    def __init__(self, *, colours: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._colours = colours

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's
        """Return the line with the id of its trace."""
        ids: dict[str, str] | None = getattr(record, "trace", None)
        record.message = printable(record.message)
        return super().formatMessage(record) + (f" trace_id={ids['trace_id']}" if ids else "")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by its traceback if it has one."""
        if record.exc_text:  # another formatter has set it
            record.exc_text = None if record.exc_info else indented(record.exc_text)
        # The worker process formatted `traceback`.
        line = redact("\n".join(filter(None, (super().format(record), indented(getattr(record, "traceback", ""))))))
        colour = _COLOURS.get(record.levelname, "") if self._colours else ""
        return f"{colour}{line}\x1b[0m" if colour else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 logging's
        """Return the traceback, indented."""
        return indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 logging's
        """Return the stack, indented."""
        return indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Texts are printable; only a traceback has several lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A fact's values are separate fields."""
        fact = getattr(record, "fact", None)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
            **(_fields(fact) if isinstance(fact, Fact) else {}),
            **(getattr(record, "trace", None) or {}),
        }
        if record.exc_info:
            line["exception"] = indented(self.formatException(record.exc_info))
        elif trace := getattr(record, "traceback", ""):  # the worker process formatted it
            line["exception"] = indented(trace)
        text = redact(json.dumps(line, default=str))
        # The context is not redacted: ids of runs and names of participants are not secrets.
        return f"{{{json.dumps(_CONTEXT)[1:-1]}, {text[1:]}" if _CONTEXT else text


def configure(format: Literal["text", "json"], level: str, **fields: str) -> None:
    """Log to stderr from `level` up, with `fields` in every JSON line. Replaces any previous configuration."""
    _CONTEXT.clear()
    describe(**fields)
    handler = logging.StreamHandler()
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(colours=colours))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def describe(**fields: str) -> None:
    """Add these fields to every JSON line from now on."""
    _CONTEXT.update({name: printable(value) for name, value in fields.items()})


def correlate(ids: Callable[[], dict[str, str] | None]) -> None:
    """Add the ids that `ids` returns, those of the current span if there is one, to every line from now on."""

    def note(record: logging.LogRecord) -> bool:
        record.trace = ids()
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(note)
