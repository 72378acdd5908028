"""The recorder: it collects facts for the archive, and writes them in batches."""

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
"""Number of rounds for which the recorder remembers that it has the statistics of their model."""


class Recorder:
    """The recorder of `rounds`, which writes to `archive`."""

    def __init__(self, archive: Archive, rounds: Rounds) -> None:
        self._archive = archive
        self._rounds = rounds
        self._strategy = ""
        self._measured: deque[int] = deque(maxlen=REMEMBERED)
        self._waiting: list[Callable[[], None]] = []
        self._save_run()

    def record(self, fact: Fact) -> None:
        """Collect a fact."""
        run, now = self._rounds.run, time.time()
        match fact:
            case events.RoundCompleted():
                self._waiting.append(partial(self._archive.add, run, fact.round, _document(fact, now)))
            case events.Evaluated(None):
                self._save_run(initial=_evaluation(fact))
            case events.Evaluated(int(round)):
                self._waiting.append(partial(self._archive.amend, round, {"evaluation": _evaluation(fact)}))
            case events.ServerEvaluated(None):
                self._save_run(server_initial=_server(fact))
            case events.ServerEvaluated(int(round)):
                self._waiting.append(partial(self._archive.amend, round, {"server": _server(fact)}))
            case events.RolledBack(newest=newest):
                self._measured.clear()  # new rounds will have the numbers of the removed ones
                self._waiting.append(partial(self._archive.roll_back, newest))
            case events.TrainingCompleted():
                reason = f"complete, stopped early: {fact.reason}" if fact.reason else "complete"
                self._waiting.append(partial(self._archive.end, run, now, reason))

    def record_page(self, page: Page) -> bool:
        """Collect the statistics of models on a page of the ledger. Return whether there are new ones."""
        news = [measured for measured in page.measured if measured.round not in self._measured]
        for measured in news:
            self._measured.append(measured.round)
            more = {"weights": dict(measured.summary), "digest": measured.digest}
            self._waiting.append(partial(self._archive.amend, measured.round, more))
        if page.strategy != self._strategy:
            self._strategy = page.strategy
            self._save_run(strategy=page.strategy)
        return bool(news)

    def write(self) -> None:
        """Write all collected entries in one transaction. Only one thread at a time may call this. Raises `OSError`."""
        entries = self._waiting[:]
        if entries:
            with self._archive.writing():
                for entry in entries:
                    entry()
            del self._waiting[: len(entries)]

    def _save_run(self, **known: Any) -> None:
        document = {"plan": asdict(self._rounds.plan), "version": version("fedround"), **known}
        self._waiting.append(partial(self._archive.save_run, self._rounds.run, document))


def _document(fact: events.RoundCompleted, now: float) -> Mapping[str, Any]:
    """Return the document of a completed round. `now` is in Unix time."""
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
    """Return the document of an evaluation by participants: the means, the range, and the metrics of each."""
    return {
        "samples": fact.samples,
        "metrics": dict(fact.metrics),
        "lowest": dict(fact.lowest),
        "highest": dict(fact.highest),
        "participants": [{"name": m.name, "samples": m.samples, "metrics": dict(m.metrics)} for m in fact.members],
    }


def _server(fact: events.ServerEvaluated) -> Mapping[str, Any]:
    """Return the document of an evaluation by the aggregator."""
    return {"samples": fact.samples, "metrics": dict(fact.metrics)}
