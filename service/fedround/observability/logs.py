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
from fedround.observability import stderr
from fedround.observability.contact import Contacts
from fedround.observability.lines import Line, line

LOG = logging.getLogger("fedround")

QUIET = ("httpcore", "httpx", "uvicorn")
"""Libraries whose lines below WARNING are dropped: they contain whole URLs, with ids and tokens."""

WARNINGS = 20
"""Number of warnings that `LogObserver.warnings` returns."""
REPEAT = 60.0
"""Seconds between two lines about the same limit or the same full disk."""

_CONTEXT: dict[str, str] = {}
"""Fields of every JSON line of this process: see `add_fields`."""

_COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


class LogObserver:
    """The log of facts: those that an operator should know at INFO and above, and all others at DEBUG.

    Args:
        keep: Whether fedround's log keeps the root logger's current level and handlers, even if training code changes them. For a
            service that runs training code in its own process.
        clock: Returns monotonic seconds.
    """

    def __init__(self, *, keep: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        root = logging.getLogger()
        self._handlers, self._level = (root.handlers[:], root.level) if keep else ([], logging.NOTSET)
        self._clock = clock
        self._contacts = Contacts(clock)
        self._limits: dict[Fact, tuple[float, int]] = {}
        """Time of the next line, and number of facts since the last one, by fact."""
        self._warnings: deque[tuple[float, str]] = deque(maxlen=WARNINGS)
        self._next_save_failure = 0.0

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """The last lines at WARNING and above, as JSON-able data: `time` in Unix seconds, and `text`."""
        return [{"time": round(when, 3), "text": text} for when, text in self._warnings.copy()]

    def __call__(self, fact: Fact) -> None:
        """Log `fact`."""
        self._restore()
        match fact:
            case events.RunStarted(run, name) | events.RoundJoined(run_id=run, run_name=name) if run:
                add_fields(run=name, run_id=run)
        if self._is_repeated(fact):
            return
        found = self._contacts.line(fact) or self._limit_line(fact) or line(fact)
        if found is not None:
            level, text = found
            LOG.log(level, "%s", text, extra={"fact": fact})
            if level >= logging.WARNING:
                self._warnings.append((time.time(), printable(redact(text))))
        elif LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("%s", _fields(fact), extra={"fact": fact})

    def _is_repeated(self, fact: Fact) -> bool:
        """Return whether to omit the line: a service writes to a full disk every second, and logs one failure a minute."""
        now = self._clock()
        match fact:
            case events.StateSaved():
                self._next_save_failure = 0.0
            case events.SaveFailed() if now < self._next_save_failure:
                return True
            case events.SaveFailed():
                self._next_save_failure = now + REPEAT
        return False

    def _restore(self) -> None:
        """Undo the effects of `logging.config`: it disables loggers that it does not name, and replaces the root's handlers."""
        if LOG.disabled:
            for name, logger in LOG.manager.loggerDict.items():
                if name.partition(".")[0] == LOG.name and isinstance(logger, logging.Logger):
                    logger.disabled = False
        if self._handlers and LOG.propagate and logging.getLogger().handlers != self._handlers:
            LOG.handlers, LOG.propagate = self._handlers, False
            LOG.setLevel(self._level)

    def _limit_line(self, fact: Fact) -> Line | None:
        """Return a line for the first fact about a limit, then at most one a minute: clients decide how often they reach it."""
        match fact:
            case events.ConnectionClosed(port, reason):
                level = logging.INFO if reason == "head" else logging.WARNING  # browsers also open connections without a request
                what = f"{_CLOSED.get(reason, reason)}; connections closed"
            case events.RequestThrottled(port):
                level, what = logging.WARNING, "clients send too many requests; requests refused"
            case _:
                return None
        now, (due, omitted) = self._clock(), self._limits.get(fact, (0.0, 0))
        if now < due:
            self._limits[fact] = due, omitted + 1
            return None
        self._limits[fact] = now + REPEAT, 0
        return level, f"{port} port: {what} since the last such line: {omitted + 1}"


_CLOSED = {
    "port_limit": "the limit of connections is reached",
    "address_limit": "the limit of connections from one address is reached",
    "head": "a request's header was too long or too slow",
    "pipeline": "a client pipelined too many requests",
    "slow": "a client read a response too slowly",
}


def _fields(fact: Fact) -> dict[str, Any]:
    """Return the fields of a fact for JSON, with shortened ids, and the number of `ids` as `participants`."""
    shown: dict[str, Any] = {"event": type(fact).__name__}
    for field in fields(fact):
        value = getattr(fact, field.name)
        match field.name:
            case "id" | "attempt":
                shown[field.name] = short(value)
            case "ids":
                shown["participants"] = len(value)
            case "run_id" | "run_name":
                continue  # every line has them: see `add_fields`
            case "members":
                continue  # too long, with one entry for each participant: `fedround history` shows them
            case "metrics":
                shown["metrics"] = dict(value)
            case _:
                shown[field.name] = printable(value) if isinstance(value, str) else value
    return shown


class TextFormatter(logging.Formatter):
    """A text line: time, level, message; coloured on a terminal."""

    default_msec_format = "%s.%03d"

    def __init__(self, *, colours: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._colours = colours

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's
        """Return the line, followed by the id of the current trace if there is one."""
        ids: dict[str, str] | None = getattr(record, "trace", None)
        record.message = printable(record.message)
        return super().formatMessage(record) + (f" trace_id={ids['trace_id']}" if ids else "")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by its traceback if it has one."""
        if record.exc_text:  # another formatter has set it
            record.exc_text = None if record.exc_info else indented(record.exc_text)
        # In a record from the worker process, `traceback` is text.
        text = redact("\n".join(filter(None, (super().format(record), indented(getattr(record, "traceback", ""))))))
        colour = _COLOURS.get(record.levelname, "") if self._colours else ""
        return f"{colour}{text}\x1b[0m" if colour else text

    def formatException(self, ei: Any) -> str:  # noqa: N802 logging's
        """Return the traceback, indented."""
        return indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 logging's
        """Return the stack, indented."""
        return indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """A line with one JSON object. Texts have no control characters, except for the line breaks of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. The values of a fact are separate fields."""
        fact = getattr(record, "fact", None)
        shown = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
            **(_fields(fact) if isinstance(fact, Fact) else {}),
            **(getattr(record, "trace", None) or {}),
        }
        if record.exc_info:
            shown["exception"] = indented(self.formatException(record.exc_info))
        elif trace := getattr(record, "traceback", ""):  # in a record from the worker process
            shown["exception"] = indented(trace)
        text = redact(json.dumps(shown, default=str))
        # The context is not redacted: ids of runs and names of participants are not secrets.
        return f"{{{json.dumps(_CONTEXT)[1:-1]}, {text[1:]}" if _CONTEXT else text


def configure(format: Literal["text", "json"], level: str, **fields: str) -> None:
    """Log to stderr from `level` up, with `fields` in every JSON line. Replaces any previous configuration."""
    _CONTEXT.clear()
    add_fields(**fields)
    handler = stderr.Handler(sys.stderr.fileno(), sys.stderr.encoding)
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(colours=colours))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def add_fields(**fields: str) -> None:
    """Add these fields to every JSON line from now on."""
    _CONTEXT.update({name: printable(value) for name, value in fields.items()})


def correlate(ids: Callable[[], dict[str, str] | None]) -> None:
    """Add the ids of the current span to every line from now on. `ids` returns them, or None without a current span."""

    def add_ids(record: logging.LogRecord) -> bool:
        record.trace = ids()
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(add_ids)
