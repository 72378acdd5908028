"""A coordinator is killed and restarted later: how soon its participants are back, whatever they were doing."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fedround
from fedround.events import ContactMade, Fact, Registered
from fedround.tensors.weights import Array
from support.known_answer import global_model
from support.link import Gate
from support.processes import Process, beside, running, until

OUTAGE = float(os.environ.get("OUTAGE", "2"))
"""Seconds until the coordinator is restarted."""
ROUNDS = 3


class Silo(fedround.NumPyParticipant):
    """A participant that adds 1, and calls `before` in its first round. `contacts`: times and kinds of responses."""

    def __init__(self, name: str, before: Callable[[], object] = lambda: None) -> None:
        self.name = name
        self.before = before
        self.contacts: list[tuple[float, type[Fact]]] = []

    def train_round(self, training_input: Array | None) -> fedround.Update:
        if fedround.current_round().number == 0:
            self.before()
        return fedround.Update(1, (np.zeros(3) if training_input is None else training_input) + 1)

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, Registered | ContactMade):
            self.contacts.append((time.monotonic(), type(fact)))

    def heard(self, kind: type[Fact], since: float) -> list[float]:
        """Return the times of contacts of a kind after `since`."""
        return [when for when, what in self.contacts if when > since and what is kind]


@pytest.mark.timeout(60 + 2 * OUTAGE)
@pytest.mark.parametrize("memory", ["without memory", "with a data directory"])
def test_after_an_outage_all_participants_are_back_within_3_seconds(memory: str, tmp_path: Path) -> None:
    training, go_on = threading.Event(), threading.Event()

    def train() -> None:
        training.set()
        assert go_on.wait(30 + OUTAGE)

    silos = _, _, sending = Silo("idle"), Silo("busy", train), Silo("sending")
    with running("aggregator") as aggregator, Gate(int(aggregator.ports["AGGREGATOR_PORT"])) as gate, ThreadPoolExecutor() as pool:
        settings = {
            "COORDINATOR_ROUNDS": str(ROUNDS),
            "COORDINATOR_MIN_CLIENTS": str(len(silos)),
            **beside(aggregator),
        }
        if memory == "with a data directory":
            settings["COORDINATOR_DATA_DIR"] = str(tmp_path)
        coordinator = Process("coordinator", **settings)
        futures = [
            pool.submit(
                fedround.run_participant,
                silo,
                coordinator.url("COORDINATOR_PORT"),
                name=silo.name,
                observers=[silo.observe],
                aggregator_url=gate.url if silo is sending else None,
            )
            for silo in silos
        ]
        assert training.wait(20)
        assert gate.held.wait(20)
        until(lambda: coordinator.status("COORDINATOR_OPS_PORT")["counted"] == 1)  # that of the idle participant
        coordinator.kill()
        killed = time.monotonic()
        threading.Event().wait(OUTAGE)
        with running("coordinator", **coordinator.ports, **settings) as again:
            returned = time.monotonic()
            news = ContactMade if memory == "with a data directory" else Registered
            until(lambda: all(silo.heard(news, killed) for silo in silos))
            took = {silo.name: max(0.0, silo.heard(news, killed)[0] - returned) for silo in silos}
            print(
                f"\nback after an outage of {OUTAGE:g} s:",
                ", ".join(f"{name} in {seconds:.2f} s" for name, seconds in took.items()),
            )
            assert max(took.values()) < 3
            go_on.set()
            gate.open.set()
            for future in futures:
                future.result()
            assert again.status("COORDINATOR_OPS_PORT")["state"] == "complete"
            assert global_model(aggregator) == [float(ROUNDS)] * 3
