"""The code behind the tables of docs/explanation/strategies-compared.md trains, and the page has its tables."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround.aggregator.strategies import STRATEGIES
from support import venvs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("bench.strategies")


def test_wrong_updates_ruin_an_average_but_not_a_trimmed_mean(bench: Any) -> None:
    average, trimmed = bench.Setup("weighted_average"), bench.Setup("trimmed_mean")
    good = bench.train("houses", average, seed=1, rounds=3)
    assert good[0] > good[1] > good[2]
    spoilt = bench.train("houses", average, seed=1, wrong=True, rounds=3)
    assert spoilt[0] < spoilt[1] < spoilt[2]
    assert good[2] < bench.train("houses", trimmed, seed=1, wrong=True, rounds=3)[2] < spoilt[0]


@pytest.mark.timeout(600)  # scikit-learn may have to be installed first
def test_digits_are_learnt_from_silos_with_two_classes_each(bench: Any) -> None:
    venvs.required(*venvs.SKLEARN)
    splits = list(bench.TASKS["digits"].splits(seed=1))
    assert [np.count_nonzero(split.training.y.sum(axis=0)) for split in splits] == [2] * 10
    assert sum(len(split.training.y) + len(split.held_out.y) for split in splits) == 1797
    curve = bench.train("digits", bench.Setup("weighted_average", mu=0.01), seed=1, rounds=3)
    assert 0.6 < curve[0] < curve[2] < 0.9


def test_the_gradient_is_that_of_the_loss(bench: Any) -> None:
    """The gradients of squared error and cross entropy, by central differences."""
    silos, random = import_module("bench.silos"), np.random.default_rng(0)
    weights = {"layer.0": random.normal(size=(4, 5)), "layer.1": random.normal(size=(5, 3))}
    x, y = random.normal(size=(6, 4)), np.eye(3)[random.integers(3, size=6)]
    losses: dict[Any, Any] = {
        np.asarray: lambda outputs: np.square(outputs - y).sum() / 2,
        silos.softmax: lambda outputs: -(y * np.log(silos.softmax(outputs))).sum(),
    }
    for output, loss in losses.items():
        gradient = silos.backward(weights, x, y, output)
        for name, index in [("layer.0", (1, 2)), ("layer.0", (3, 4)), ("layer.1", (2, 1))]:
            step = {name: np.zeros_like(weights[name])}
            step[name][index] = 1e-6
            up, down = (loss(silos.forward(weights | {name: weights[name] + s * step[name]}, x)[1]) / len(y) for s in (1, -1))
            assert gradient[name][index] == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8)


def test_the_page_has_every_row_of_both_tables(bench: Any) -> None:
    _, *tables = bench.BLOCK.search(bench.PAGE.read_text())[0].split("\n\n**")
    for table, task in zip(tables, bench.TASKS.values(), strict=True):
        assert bench.header(task).strip("*\n") in table
        assert [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| `")] == list(bench.ROWS)
    assert {setups[0].strategy for setups in bench.ROWS.values()} == STRATEGIES.keys() - {"model_sum"}
