"""Krum and Multi-Krum compared with the definition, and the choice of updates by their distances."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedround
from fedround import testing
from fedround.aggregator import running
from fedround.aggregator.robust import Krum, MultiKrum
from fedround.aggregator.strategies import ROBUST, UNWEIGHTED, Median
from fedround.errors import ConfigurationError, RoundFailed, UnknownAttempt
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Spec, Weights
from support.aggregating import built, train

F8 = Spec(np.dtype("<f8"), (1,))


def whole(update: Weights) -> Array:
    """Return all floats of an update as one array."""
    if not isinstance(update, dict):
        return np.asarray(update, "f8").reshape(-1)
    return np.concatenate([tensor.astype("f8").reshape(-1) for tensor in update.values() if tensor.dtype.kind == "f"])


def best(updates: Sequence[Weights], byzantine: int, keep: int) -> list[int]:
    """Return the positions of the updates with the smallest scores, by the definition in the paper."""
    rows = [whole(update) for update in updates]
    scores = []
    for i, row in enumerate(rows):
        squares = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append((sum(squares[: len(rows) - byzantine - 2]), i))
    return [i for _, i in sorted(scores)[:keep]]


def numbered(updates: Sequence[Weights]) -> list[tuple[int, Weights]]:
    """Add sample counts, which do not matter."""
    return [(10**k, update) for k, update in enumerate(updates)]


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2"])
@pytest.mark.parametrize(("count", "byzantine"), [(3, 0), (5, 1), (8, 1), (8, 2)])
async def test_krum_takes_the_update_with_the_smallest_score(count: int, byzantine: int, dtype: str) -> None:
    updates = np.random.default_rng(count).normal(size=(count, 2 * BLOCK + 5)).astype(dtype)
    model = await train(built("krum", byzantine=byzantine), 0, *numbered(list(updates)))
    np.testing.assert_array_equal(model, updates[best(list(updates), byzantine, 1)[0]])


@pytest.mark.parametrize(
    ("options", "kept"), [({}, 5), ({"keep": 3}, 3), ({"keep": 7}, 7), ({"keep": 1}, 1), ({"byzantine": 2}, 4)]
)
async def test_multi_krum_averages_the_updates_with_the_best_scores(options: dict[str, Any], kept: int) -> None:
    updates = list(np.random.default_rng(0).normal(size=(8, 1000)))
    model = await train(built("multi_krum", **options), 0, *numbered(updates))
    chosen = best(updates, options.get("byzantine", 1), kept)
    np.testing.assert_allclose(model, np.mean([updates[one] for one in chosen], axis=0), rtol=1e-14)


async def test_all_floats_of_an_update_decide_together_and_counters_do_not() -> None:
    random = np.random.default_rng(5)
    updates: list[dict[str, Array]] = [
        {
            "a": random.normal(size=(3, 2)).astype("<f4"),
            "b": random.normal(size=7),
            "n": np.array(10**9 * k, "<i8"),
            "empty": np.zeros(0),
            "mask": np.array([True]),
        }
        for k in range(7)
    ]
    chosen = best(updates, 1, 1)[0]
    alone = {name: best([update[name] for update in updates], 1, 1)[0] for name in "ab"}
    assert set(alone.values()) != {chosen}, "tensor by tensor it would be another one"
    aggregator = built("krum")
    await train(aggregator, 0, *numbered(updates))
    assert aggregator.model is not None
    made = aggregator.model.weights
    assert isinstance(made, dict)
    for name, tensor in updates[chosen].items():
        np.testing.assert_array_equal(made[name], tensor)


async def test_a_model_of_integers_is_compared_by_its_integers() -> None:
    updates = [{"n": np.array([value], "<i4")} for value in (900, 1, 2, 3, -900)]
    assert (await train(built("krum"), 0, *numbered(updates))).tolist() == [2]


@given(st.integers(0, 4), st.sampled_from([1e15, -1e15, 1e8, 0.0]))
def test_a_distant_update_is_never_chosen_and_hides_no_difference_between_the_others(position: int, value: float) -> None:
    async def main() -> None:
        updates = [np.array([1.0 + k * k * 1e-9, 7.0]) for k in range(4)]
        updates.insert(position, np.array([value, value]))
        model = await train(built("krum"), 0, *numbered(updates))
        assert model.tolist() == updates[best(updates, 1, 1)[0]].tolist()
        assert abs(model[0] - 1) < 1e-7

    asyncio.run(main())


def test_the_first_of_equal_updates_is_chosen() -> None:
    assert list(MultiKrum(F8, keep=2).choose([1] * 5, np.zeros((5, 5)))) == [0, 1]


def test_distances_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class Recording(Krum):
        def choose(self, samples: Sequence[int], distances: Array) -> Sequence[int]:
            found.append(distances)
            return super().choose(samples, distances)

    updates = list(np.random.default_rng(2).normal(size=(5, 10_000)).astype("<f4"))
    for at_once, columns in ((1 << 21, 1 << 12), (5 * 997, 100)):
        monkeypatch.setattr(running, "AT_ONCE", at_once)
        monkeypatch.setattr(running, "COLUMNS", columns)
        monkeypatch.setattr("fedround.aggregator.strategies.STRATEGIES", {"recording": Recording})
        asyncio.run(train(built("recording"), 0, *numbered(updates)))
    wide = np.array(updates, "f8")
    expected = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))
    for distances in found:
        np.testing.assert_allclose(distances, expected, rtol=1e-12)
        assert (distances == distances.T).all()


class Silo(fedround.NumPyParticipant):
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def train_round(self, weights: Any, /) -> fedround.Update:
        return fedround.Update(1, np.full(3, self.weight))


def test_colluding_updates_do_no_harm_up_to_the_configured_number() -> None:
    with testing.platform(rounds=2, min_clients=7, strategy="krum", strategy_options={"byzantine": 2}) as p:
        p.run(*map(Silo, (1.0, 1.1, 1.2, 1.1, 1.0, 1e9, 1e9)))
    assert 1.0 <= p.global_model[0] <= 1.2


def test_a_round_with_too_few_updates_is_refused_with_the_setting_that_helps() -> None:
    says = (
        r"AGGREGATOR_STRATEGY_OPTIONS: with byzantine=1 a round needs at least 5 updates, but this one has 4: "
        "raise COORDINATOR_MIN_CLIENTS"
    )
    with testing.platform(min_clients=4, strategy="krum") as p, pytest.raises(RoundFailed, match=says):
        p.run(*map(Silo, range(4)))


def test_multi_krum_keeps_no_more_updates_than_it_can_trust() -> None:
    with pytest.raises(ConfigurationError, match="with byzantine=1, keep=5 a round needs at least 6 updates, but this one has 5"):
        MultiKrum(F8, keep=5).choose([1] * 5, np.zeros((5, 5)))


def test_krum_is_robust_and_ignores_sample_counts() -> None:
    assert {"krum", "multi_krum"} <= ROBUST <= UNWEIGHTED


class Choosing(Median):
    """A strategy that chooses `chosen`."""

    def __init__(self, spec: Spec, *, chosen: Any) -> None:
        super().__init__(spec)
        self.chosen = chosen

    def choose(self, samples: Sequence[int], distances: Array) -> Any:
        return np.array(self.chosen, "i8") if self.chosen == [2, 0] else self.chosen

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        assert list(samples) == [100, 1]
        difference: Array = updates[0] - updates[1]
        return difference


def test_a_custom_class_gets_the_chosen_updates_in_order() -> None:
    updates = [np.array([value]) for value in (1.0, 2.0, 4.0)]
    aggregator = built(f"{__name__}:Choosing", chosen=[2, 0])
    assert asyncio.run(train(aggregator, 0, *numbered(updates))).tolist() == [3.0]


@pytest.mark.parametrize("chosen", [[], [0, 0], [3], [-1], [0.5], None])
async def test_an_invalid_choice_loses_the_round(chosen: Any, caplog: pytest.LogCaptureFixture) -> None:
    aggregator = built(f"{__name__}:Choosing", chosen=chosen)
    with pytest.raises(UnknownAttempt):
        await train(aggregator, 0, *numbered([np.array([value]) for value in (1.0, 2.0, 4.0)]))
    assert aggregator.model is None
    assert "cannot make a model" in caplog.text
