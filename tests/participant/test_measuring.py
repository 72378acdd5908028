"""Statistics of the weights in downloads and uploads: in any format that contains an `.npy`, and without delay for a round."""

import tracemalloc
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from fedround import events
from fedround.events import Fact
from fedround.participant import measuring
from fedround.participant.measuring import Measuring
from fedround.tensors import measures, values, weights
from fedround.tensors.statistics import Change
from fedround.tensors.weights import Array
from support.updates import npy, update


def measured(*steps: Callable[[Measuring], Any]) -> list[Fact]:
    """Return the facts of `steps`, without the phases."""
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


def changed(*steps: Callable[[Measuring], Any]) -> tuple[Any, Any]:
    """Return the norm of the last update, and its cosine."""
    fact = measured(*steps)[-1]
    assert isinstance(fact, events.UpdateMeasured)
    return (fact.change.l2_norm, fact.change.cosine_similarity) if fact.change else (None, None)


def test_the_received_model_and_the_sent_update_are_measured() -> None:
    before, after = np.array([3.0, 4.0]), np.array([3.0, 5.0])
    assert measured(received(npy(before)), trained(*encoded(30, after))) == [
        events.WeightsMeasured(3, "global", len(npy(before)), measures.statistics(before)),
        events.WeightsMeasured(3, "local", 4 + len(npy(after)), measures.statistics(after)),
        events.UpdateMeasured(3, 30, Change(1.0, None)),
    ]


def test_the_direction_of_an_update_distinguishes_outliers() -> None:
    models = [np.array([100.0, 100.0]), np.array([101.0, 101.0])]
    come = [received(npy(model)) for model in models]
    for step, cosine in (([1.0, 1.0], 1.0), ([1.0, -1.0], 0.0), ([-1.0, -1.0], -1.0)):
        found = changed(*come, trained(*encoded(1, models[1] + step)))
        assert found == (pytest.approx(np.sqrt(2)), pytest.approx(cosine))


@pytest.mark.parametrize("other", [b"", b"a format of its own", npy(np.ones(3))])
def test_without_two_models_of_one_shape_there_is_no_direction(other: bytes) -> None:
    first, second, update = npy(np.zeros(2)), npy(np.ones(2)), encoded(1, np.zeros(2))
    assert changed(received(first), received(other), received(second), trained(*update)) == (pytest.approx(np.sqrt(2)), None)
    assert changed(received(first), received(other), trained(*update)) == (None, None)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_norm_and_direction_of_a_large_model_are_estimates(order: Literal["C", "F"], dtype: str) -> None:
    random, shape = np.random.default_rng(1), (1024, 1024)
    where = random.normal(size=shape) * np.linspace(0, 2, 1024)  # as much in no two columns
    first = random.normal(size=shape)
    update = 0.6 * where + 0.8 * np.linalg.norm(where) / 1024 * random.normal(size=shape)
    models = [first, first + where, first + where + update]
    come, then, went = (np.asarray(model, dtype, order=order) for model in models)
    found = changed(received(npy(come)), received(npy(then)), trained(*encoded(1, np.asarray(went, order="C"))))
    assert then.nbytes > 3 * measuring.SAMPLE
    assert found == (pytest.approx(np.linalg.norm(update), rel=0.01), pytest.approx(0.6, abs=0.01))


def test_training_in_place_does_not_change_the_measured_model() -> None:
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
def test_an_update_in_one_or_two_pieces_is_measured(parts: list[bytes]) -> None:
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
def test_only_the_samples_of_a_custom_format_are_measured(parts: list[bytes]) -> None:
    assert measured(received(b"a format of its own"), trained(*parts)) == [events.UpdateMeasured(3, 7, None)]


def test_in_the_first_round_no_model_is_measured() -> None:
    assert measured(received(b"")) == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_at_most_two_samples_of_a_large_model_are_copied(order: Literal["C", "F"]) -> None:
    model = np.asarray(np.zeros((16, measuring.SAMPLE // 8)), order=order)
    data, update = memoryview(bytearray(npy(model))), encoded(1, model)
    facts: list[Fact] = []
    measure = Measuring(facts.append)
    tracemalloc.start()
    try:
        for _ in range(3):
            measure.received(3, data)
            measure.trained(3, update)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2.1 * measuring.SAMPLE
    assert peak < 2.1 * measuring.SAMPLE + 5 * 8 * values.BLOCK + measuring.SAMPLE * (order == "F")
    assert facts[-2] == events.UpdateMeasured(3, 1, Change(0.0, None))


def test_a_failed_measurement_costs_no_round(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_array: Array) -> None:
        raise MemoryError

    monkeypatch.setattr(measuring, "statistics", fail)
    assert measured(received(npy(np.ones(2)))) == []
    assert "the weights of round 3 cannot be measured" in caplog.text
