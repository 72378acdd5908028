"""The recorder: collects facts for the archive until they are written."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

from fedround import events
from fedround.common.books import Page
from fedround.coordinator.archive import Archive
from fedround.coordinator.rounds import Rounds
from fedround.events import Fact

REMEMBERED = 10
"""Number of rounds whose model statistics are known to be in the archive."""


class Recorder:
    """Writes the history of `rounds` to `archive`."""

    def __init__(self, archive: Archive, rounds: Rounds) -> None:
        self._archive = archive
        self._rounds = rounds
        self._strategy = ""
        self._measured: deque[int] = deque(maxlen=REMEMBERED)
        self._waiting: list[Callable[[], None]] = []
        self._enter()

    def fact(self, fact: Fact) -> None:
        """Note a fact."""
        run, now = self._rounds.run, time.time()
        match fact:
            case events.RoundCompleted():
                self._waiting.append(partial(self._archive.add, run, fact.round, _document(fact, now)))
            case events.Evaluated(None):
                self._enter(initial=_evaluation(fact))
            case events.Evaluated(int(round)):
                self._waiting.append(partial(self._archive.amend, round, {"evaluation": _evaluation(fact)}))
            case events.ServerEvaluated(None):
                self._enter(server_initial=_server(fact))
            case events.ServerEvaluated(int(round)):
                self._waiting.append(partial(self._archive.amend, round, {"server": _server(fact)}))
            case events.RolledBack(newest=newest):
                self._measured.clear()  # the numbers of these rounds are used again
                self._waiting.append(partial(self._archive.roll_back, newest))
            case events.TrainingCompleted():
                reason = f"complete, stopped early: {fact.reason}" if fact.reason else "complete"
                self._waiting.append(partial(self._archive.end, run, now, reason))

    def page(self, page: Page) -> bool:
        """Note the statistics of models on a page of the ledger. Return whether there are new ones."""
        news = [measured for measured in page.measured if measured.round not in self._measured]
        for measured in news:
            self._measured.append(measured.round)
            more = {"weights": dict(measured.summary), "digest": measured.digest}
            self._waiting.append(partial(self._archive.amend, measured.round, more))
        if page.strategy != self._strategy:
            self._strategy = page.strategy
            self._enter(strategy=page.strategy)
        return bool(news)

    def write(self) -> None:
        """Write all waiting entries in one transaction. One thread at a time may call it. Raises `OSError`."""
        entries = self._waiting[:]
        if entries:
            with self._archive.writing():
                for entry in entries:
                    entry()
            del self._waiting[: len(entries)]

    def _enter(self, **known: Any) -> None:
        document = {"plan": asdict(self._rounds.plan), "version": version("fedround"), **known}
        self._waiting.append(partial(self._archive.enter, self._rounds.run, document))


def _document(fact: events.RoundCompleted, now: float) -> Mapping[str, Any]:
    """Return the archive's document of a completed round. `now` is in Unix time."""
    return {
        "ended": now,
        "seconds": fact.seconds,
        "counted": len(fact.ids),
        "dropped": fact.dropped,
        "late": fact.late,
        "samples": fact.samples,
        "parameters": fact.parameters,
        "metrics": dict(fact.metrics),
        "participants": [
            {"name": m.name, "samples": m.samples, "seconds": round(m.seconds, 3), "metrics": dict(m.metrics)} for m in fact.members
        ],
    }


def _evaluation(fact: events.Evaluated) -> Mapping[str, Any]:
    """Return the archive's document of an evaluation: the means, the range, and each participant's metrics."""
    return {
        "samples": fact.samples,
        "metrics": dict(fact.metrics),
        "lowest": dict(fact.lowest),
        "highest": dict(fact.highest),
        "participants": [{"name": m.name, "samples": m.samples, "metrics": dict(m.metrics)} for m in fact.members],
    }


def _server(fact: events.ServerEvaluated) -> Mapping[str, Any]:
    """Return the archive's document of an evaluation by the aggregator."""
    return {"samples": fact.samples, "metrics": dict(fact.metrics)}
