"""Server optimisers compared with the formulas of the papers, and with Flower."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fedround
from fedround import testing
from fedround.aggregator.optimisers import FedAdagrad, FedAdam, FedAvgM, FedYogi, ServerOptimiser
from fedround.common.durable import Directory
from fedround.errors import UnknownAttempt
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Spec, Weights
from support import venvs
from support.aggregating import built, train
from support.disks import MemoryDisk

SAMPLES = 1, 2, 5
BF16 = ml_dtypes.bfloat16
Kept = dict[str, Array]
Step = Callable[[Array, Kept], Array]
"""The step for a pseudo-gradient, by the paper, and the values to keep for the next step."""


def before(kept: Kept, name: str, gradient: Array) -> Array:
    return kept.get(name, np.zeros_like(gradient))


def fedavgm(gradient: Array, kept: Kept, rate: float = 1.0, beta: float = 0.9) -> Array:
    kept["v"] = beta * before(kept, "v", gradient) + gradient
    return rate * kept["v"]


def fedadagrad(gradient: Array, kept: Kept, eta: float = 0.1, tau: float = 1e-3) -> Array:
    kept["v"] = before(kept, "v", gradient) + gradient**2
    step: Array = eta * gradient / (np.sqrt(kept["v"]) + tau)
    return step


def fedadam(gradient: Array, kept: Kept) -> Array:
    kept["m"] = 0.9 * before(kept, "m", gradient) + 0.1 * gradient
    kept["v"] = 0.99 * before(kept, "v", gradient) + 0.01 * gradient**2
    step: Array = 0.1 * kept["m"] / (np.sqrt(kept["v"]) + 1e-3)
    return step


def corrected(gradient: Array, kept: Kept) -> Array:
    t = kept["t"] = before(kept, "t", np.zeros(())) + 1
    return fedadam(gradient, kept) * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)


def fedyogi(gradient: Array, kept: Kept) -> Array:
    v, square = before(kept, "v", gradient), gradient**2
    kept["m"] = 0.9 * before(kept, "m", gradient) + 0.1 * gradient
    kept["v"] = v - 0.01 * square * np.sign(v - square)
    step: Array = 0.01 * kept["m"] / (np.sqrt(kept["v"]) + 1e-3)
    return step


CASES: list[tuple[str, dict[str, Any], Step]] = [
    ("fedavgm", {}, fedavgm),
    ("fedavgm", {"server_learning_rate": 0.5, "server_momentum": 0.5}, lambda gradient, kept: fedavgm(gradient, kept, 0.5, 0.5)),
    ("fedadagrad", {}, fedadagrad),
    ("fedadagrad", {"eta": 2, "tau": 0.5}, lambda gradient, kept: fedadagrad(gradient, kept, 2, 0.5)),
    ("fedadam", {}, fedadam),
    ("fedadam", {"bias_correction": True}, corrected),
    ("fedyogi", {}, fedyogi),
]
NAMES = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def around(model: Mapping[str, Array], random: np.random.Generator) -> list[dict[str, Array]]:
    """Updates of a model: what is not a float counts one up."""
    return [
        {
            name: tensor + 1 if tensor.dtype.kind == "i" else (tensor + random.normal(0.3, 1, tensor.shape)).astype(tensor.dtype)
            for name, tensor in model.items()
        }
        for _ in SAMPLES
    ]


def weighed(updates: list[Array]) -> Array:
    wide = [update.astype("f8") * samples for update, samples in zip(updates, SAMPLES, strict=True)]
    mean: Array = sum(wide, np.zeros(updates[0].shape)) / sum(SAMPLES)
    return mean


EXACT = {"<f8": 1e-12, "<f4": 1e-6, "<f2": 1e-3, "bfloat16": 1e-2}


def exact(dtype: np.dtype[Any]) -> float:
    return EXACT["bfloat16" if dtype == BF16 else dtype.str]


@pytest.mark.parametrize(("name", "options", "step"), CASES)
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
async def test_the_steps_of_one_array_are_those_of_the_paper(name: str, options: dict[str, Any], step: Step, dtype: str) -> None:
    random, kept = np.random.default_rng(7), Kept()
    aggregator = built(name, **options)
    model = random.normal(size=(BLOCK + 3,)).astype(dtype)
    first = await train(aggregator, 0, *((samples, model) for samples in SAMPLES))
    np.testing.assert_array_equal(first, model)  # there was no model: this is the plain average
    assert aggregator.model is not None
    assert aggregator.model.state.tensors == {}
    for number in range(1, 5):
        updates = [update["w"] for update in around({"w": model}, random)]
        expected = model + step(weighed(updates) - model, kept)
        model = await train(aggregator, number, *zip(SAMPLES, updates, strict=True))
        assert model.dtype == np.dtype(dtype)
        np.testing.assert_allclose(model, expected, rtol=exact(model.dtype), atol=exact(model.dtype))


@pytest.mark.parametrize(("name", "options", "step"), CASES)
async def test_in_a_mapping_floats_are_optimised_and_counters_averaged(name: str, options: dict[str, Any], step: Step) -> None:
    random = np.random.default_rng(7)
    memories: dict[str, Kept] = {name: {} for name in ("f8", "f4", "f2", "bf")}
    model: dict[str, Array] = {
        "f8": random.normal(size=(3, 2)),
        "n": np.array(7, "<i8"),
        "f4": random.normal(size=4).astype("<f4"),
        "f2": random.normal(size=5).astype("<f2"),
        "bf": random.normal(size=6).astype(BF16),
    }
    aggregator = built(name, **options)
    await train(aggregator, 0, (1, model))
    for number in range(1, 5):
        updates = around(model, random)
        means = {tensor: weighed([update[tensor] for update in updates]) for tensor in model}
        await train(aggregator, number, *zip(SAMPLES, updates, strict=True))
        assert aggregator.model is not None
        made = aggregator.model.weights
        assert isinstance(made, Mapping)
        for tensor, kept in memories.items():
            former = model[tensor].astype("f8")
            expected = former + step(means[tensor] - former, kept)
            error = exact(model[tensor].dtype)
            np.testing.assert_allclose(made[tensor].astype("f8"), expected, rtol=error, atol=error)
        assert made["n"] == 7 + number
        assert aggregator.model.state.tensors.keys() == memories.keys()
        model = dict(made)


class Fixed(fedround.NumPyParticipant):
    """A participant that returns the same weights in every round."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def train_round(self, weights: Any, /) -> fedround.Update:
        return fedround.Update(1, self.weights)


def test_a_constant_stays_and_its_neighbours_are_optimised() -> None:
    start, update = ({"mask": np.array([-np.inf, weight], "<f4")} for weight in (1.0, 3.0))
    with testing.platform(rounds=2, strategy="fedavgm", strategy_options={"server_momentum": 0.5}, initial_model=start) as p:
        p.run(Fixed(update))
    assert p.global_model["mask"].tolist() == [-np.inf, 4.0]  # a step of 2, and one of 0 + 2 / 2


@pytest.mark.parametrize("name", NAMES)
async def test_a_restart_at_any_time_does_not_change_the_model(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    disk, through = Directory(tmp_path), built(name)
    model: Array = random.normal(size=50).astype("<f4")
    for number in range(6):
        updates: list[tuple[int, Weights]] = [(samples, model + random.normal(size=50).astype("<f4")) for samples in SAMPLES]
        restarted = await train(built(name, disk), number, *updates)
        model = await train(through, number, *updates)
        np.testing.assert_array_equal(restarted, model)


async def test_after_a_rollback_the_same_updates_give_the_same_model() -> None:
    aggregator = built("fedadam", MemoryDisk())
    made = [await train(aggregator, number, (1, np.full(3, number**2, "<f4"))) for number in range(4)]
    await aggregator.roll_back(1)
    again = [await train(aggregator, number + 10, (1, np.full(3, number**2, "<f4"))) for number in (2, 3)]
    assert [model.tolist() for model in again] == [model.tolist() for model in made[2:]]


@pytest.mark.parametrize("other", ["fedavgm", "fedadagrad", "fedyogi"])
async def test_the_state_of_another_optimiser_is_not_used(other: str, caplog: pytest.LogCaptureFixture) -> None:
    disk = MemoryDisk()
    for number in range(3):
        await train(built("fedadam", disk), number, (1, np.full(2, 1.0 + number, "<f4")))
    changed, fresh = built(other, disk), built(other)
    await train(fresh, 2, (1, built("fedadam", disk).model.tensors[0]))  # type: ignore[union-attr]
    update = 1, np.full(2, 9.0, "<f4")
    np.testing.assert_array_equal(await train(changed, 3, update), await train(fresh, 3, update))
    assert "begins with an empty state: the state of the model of round 2 does not fit" in caplog.text
    assert "m (float32 of shape (2,)), rounds (int64 of shape ()), v (float32 of shape (2,))" in caplog.text


def test_a_counter_has_no_state() -> None:
    with pytest.raises(ValueError, match=r"it has m \(float64 of shape \(1,\)\), but FedAdam needs nothing"):
        FedAdam(Spec(np.dtype("<i8"), (1,))).begin(np.zeros(1, "<i8"), {"m": np.zeros(1)})


async def test_a_step_beyond_the_dtype_loses_the_round_but_not_the_state() -> None:
    aggregator = built("fedavgm", server_learning_rate=1e6)
    await train(aggregator, 0, (1, np.zeros(2, "<f2")))
    with pytest.raises(UnknownAttempt):
        await train(aggregator, 1, (1, np.ones(2, "<f2")))
    assert aggregator.model is not None
    assert (aggregator.model.round, aggregator.model.state.tensors) == (0, {})


@pytest.mark.parametrize("optimiser", [FedAvgM, FedAdagrad, FedAdam, FedYogi])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2"])
def test_the_memory_use_is_as_documented(optimiser: type[ServerOptimiser], dtype: str) -> None:
    spec = Spec(np.dtype(dtype), (1000,))
    strategy = optimiser(spec)
    strategy.begin(np.zeros(1000, dtype), {})
    strategy.fold(1, [np.ones(1000, dtype)])
    strategy.result()
    narrow = 8 if optimiser in (FedAdam, FedYogi) else 4
    assert f"Memory: {narrow} bytes a weight, {2 * narrow} for float64." in (optimiser.__doc__ or "")
    state = strategy.state()
    assert sum(array.nbytes for array in state.values() if array.size > 1) == 1000 * narrow * (2 if dtype == "<f8" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_platform_trains_with_an_optimiser(name: str) -> None:
    with testing.platform(rounds=3, min_clients=2, strategy=name) as p:
        p.run(Fixed(np.array([1.0])), Fixed(np.array([3.0])))
    assert p.global_model is not None
    assert p.global_model.tolist() == [2.0]


# Flower


FLOWER: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("fedavgm", {"server_learning_rate": 0.5}, "FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.9}),
    ("fedadagrad", {}, "FedAdagrad", {}),
    ("fedadam", {"bias_correction": True}, "FedAdam", {}),
    ("fedyogi", {}, "FedYogi", {}),
]


@pytest.mark.timeout(600)  # it may have to be installed
@pytest.mark.parametrize(("ours", "options", "theirs", "their_options"), FLOWER)
async def test_the_models_are_those_of_flower(
    ours: str, options: dict[str, Any], theirs: str, their_options: dict[str, Any], tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    first = random.normal(size=40)
    rounds = [[first + random.normal(0.2, 1, 40) for _ in SAMPLES] for _ in range(3)]
    task = {
        "strategy": theirs,
        "options": their_options,
        "samples": SAMPLES,
        "model": first.tolist(),
        "rounds": [[update.tolist() for update in updates] for updates in rounds],
    }
    command = [venvs.required(*venvs.FLOWER), "-m", "support.flower_optimisers"]
    done = subprocess.run(  # noqa: ASYNC221 nothing else runs on this loop
        command, input=json.dumps(task), cwd=tmp_path, env=venvs.environ("tests"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = [np.array(model) for model in json.loads(done.stdout.splitlines()[-1])]
    aggregator = built(ours, **options)
    await train(aggregator, 0, (1, first))
    for number, updates in enumerate(rounds):
        model = await train(aggregator, number + 1, *zip(SAMPLES, updates, strict=True))
        np.testing.assert_allclose(model, expected[number], rtol=1e-6)
