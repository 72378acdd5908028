"""A thousand rounds in one process: memory, descriptors, threads and series do not grow."""

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import fedround
from fedround.observability.logs import LogObserver
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.participant.run import connected
from fedround.participant.terms import Terms
from fedround.tensors.weights import Array
from support.federation import our_platform

ROUNDS = 1000
WARM = 200
"""Number of rounds after which everything that is made once exists."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Use:
    """The resources of the process."""

    rss_mb: float
    descriptors: int
    threads: int
    series: int

    @classmethod
    def of(cls, metrics: Metrics) -> "Use":
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6
        # The threads of the event loop's pool are started on demand, and bounded.
        threads = sum(not thread.name.startswith("uvloop_") for thread in threading.enumerate())
        series = sum(len(family.samples) for family in metrics.registry.collect())
        return cls(resident, len(list(Path("/proc/self/fd").iterdir())), threads, series)


class Measured(fedround.NumPyParticipant):
    """A participant that measures the process while it trains, so that the same is under way each time."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.uses: dict[int, Use] = {}

    def train_round(self, training_input: Array | None) -> fedround.Update:
        number = fedround.current_round().number
        fedround.current_round().report(loss=1 / (1 + number))
        if number in (WARM, ROUNDS - 1):
            self.uses[number] = Use.of(self.metrics)
        return fedround.Update(1, np.full(5, 1.0 + number))


@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_a_thousand_rounds_leak_no_memory() -> None:
    metrics = ParticipantMetrics()
    participant = Measured(metrics)
    terms = Terms(observers=[metrics, LogObserver()])
    with our_platform(rounds=ROUNDS, min_clients=1) as p, connected(participant, p.url, terms, measure=True) as runtime:
        runtime.run()
    before, after = participant.uses[WARM], participant.uses[ROUNDS - 1]
    print(f"\nafter {WARM} rounds:  {before}\nafter {ROUNDS} rounds: {after}")
    assert (after.threads, after.series) == (before.threads, before.series)
    # One connection may just be closing. A leak in every round, or in every tenth, shows 80 times or more by now.
    assert after.descriptors <= before.descriptors + 4
    assert after.rss_mb - before.rss_mb < 5
