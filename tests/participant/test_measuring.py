"""What a participant measures of the weights on their way: in any format that holds an `.npy`, and never at a round's cost."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedround import events, weights
from fedround.events import Fact
from fedround.participant import measuring
from fedround.participant.measuring import Measuring
from fedround.weights import Array
from support.updates import npy, update


def measured(*steps: Callable[[Measuring], Any]) -> list[Fact]:
    """What is told while `steps` are done, without the phases."""
    facts: list[Fact] = []
    measure = Measuring(facts.append)
    for step in steps:
        step(measure)
    assert [fact.phase for fact in facts if isinstance(fact, events.PhaseEnded)] == ["check"] * len(steps)
    return [fact for fact in facts if not isinstance(fact, events.PhaseBegan | events.PhaseEnded)]


def received(data: bytes) -> Callable[[Measuring], None]:
    return lambda measure: measure.received(3, memoryview(bytearray(data)))


def trained(*parts: bytes | memoryview) -> Callable[[Measuring], None]:
    return lambda measure: measure.trained(3, [memoryview(part) for part in parts])


def encoded(samples: int, array: Array) -> list[memoryview]:
    return [memoryview(part) for part in weights.encode_update(samples, array)]


def test_a_model_that_comes_and_the_update_that_goes_are_measured() -> None:
    before, after = np.array([3.0, 4.0]), np.array([3.0, 5.0])
    came, went, change = measured(received(npy(before)), trained(*weights.encode_update(30, after)))
    assert came == events.WeightsMeasured(3, "global", len(npy(before)), weights.statistics(before))
    assert went == events.WeightsMeasured(3, "local", 4 + len(npy(after)), weights.statistics(after))
    assert isinstance(change, events.UpdateMeasured)
    assert change.samples == 30
    assert change.change is not None
    assert change.change.l2_norm == pytest.approx(1.0)
    assert change.change.cosine_similarity == pytest.approx((9 + 20) / 5 / np.sqrt(34))


def test_training_in_place_does_not_change_what_came() -> None:
    facts: list[Fact] = []
    measure, buffer = Measuring(facts.append), memoryview(bytearray(npy(np.zeros(2))))
    measure.received(3, buffer)
    model = weights.decode(buffer)
    model[:] = 1.0
    measure.trained(3, encoded(1, model))
    (change,) = [fact.change for fact in facts if isinstance(fact, events.UpdateMeasured)]
    assert change is not None
    assert change.l2_norm == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("parts", [[update(7, 1.0, 2.0)], [update(7, 1.0, 2.0)[:4], update(7, 1.0, 2.0)[4:]]], ids=["one", "two"])
def test_an_update_in_one_piece_or_in_its_two_is_measured(parts: list[bytes]) -> None:
    went, change = measured(trained(*parts))
    assert isinstance(went, events.WeightsMeasured)
    assert went.statistics.values == (1.0, 2.0)
    assert change == events.UpdateMeasured(3, 7, None)


@pytest.mark.parametrize(
    "parts",
    [
        [b"\0\0\0\x07" + b"a format of its own"],
        [update(7, 1.0, 2.0)[:136], update(7, 1.0, 2.0)[136:]],  # cut within the weights
        [update(7, 1.0, 2.0)[:-1]],
    ],
    ids=["own format", "in pieces", "cut"],
)
def test_of_another_format_only_the_samples_are_known(parts: list[bytes]) -> None:
    assert measured(received(b"a format of its own"), trained(*parts)) == [events.UpdateMeasured(3, 7, None)]


def test_the_first_round_has_no_model_to_measure() -> None:
    assert measured(received(b"")) == []


def test_a_large_model_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = np.arange(4.0 * weights.BLOCK)
    monkeypatch.setattr(measuring, "MAX_COPY", model.nbytes - 1)
    data = memoryview(bytearray(npy(model)))
    facts: list[Fact] = []
    measure = Measuring(facts.append)
    tracemalloc.start()
    try:
        measure.received(3, data)
        measure.trained(3, encoded(1, model))
        assert tracemalloc.get_traced_memory()[1] < model.nbytes
    finally:
        tracemalloc.stop()
    assert facts[-2] == events.UpdateMeasured(3, 1, None)


def test_what_cannot_be_measured_costs_no_round(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_array: Array) -> None:
        raise MemoryError

    monkeypatch.setattr(measuring, "statistics", fail)
    assert measured(received(npy(np.ones(2)))) == []
    assert "the weights of round 3 cannot be measured" in caplog.text
