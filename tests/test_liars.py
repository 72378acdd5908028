"""One participant sends harmful updates to a platform with default settings. All others continue."""

from collections.abc import Callable

import numpy as np
import pytest

import fedround
from fedround import testing
from fedround.tensors.weights import Array

ROUNDS = 6


class Honest(fedround.NumPyParticipant):
    """A participant that adds one to every weight."""

    def train_round(self, training_input: Array | None) -> fedround.Update:
        weights = np.zeros(4) if training_input is None else training_input
        assert np.abs(weights).max() < 100, "a model that nobody can train on"
        return fedround.Update(100, weights + 1)


class Liar(Honest):
    """A participant that passes its updates through `lie` from round `since` on, and sends them unchecked."""

    def __init__(self, lie: Callable[[fedround.Update], fedround.Update], since: int) -> None:
        self.lie = lie
        self.since = since

    def train_round(self, training_input: Array | None) -> fedround.Update:
        update = super().train_round(training_input)
        return self.lie(update) if fedround.current_round().number >= self.since else update

    def check_training_result(self, training_result: object) -> None:
        """Accept everything."""


def weights(value: float, dtype: str = "<f8") -> Callable[[fedround.Update], fedround.Update]:
    return lambda update: fedround.Update(1, np.full_like(update.weights, value).astype(dtype))


def samples(count: int) -> Callable[[fedround.Update], fedround.Update]:
    return lambda update: fedround.Update(count, np.full_like(update.weights, -50.0))


LIES = {
    "weights whose squares overflow": weights(1e200),
    "infinite weights": weights(np.inf),
    "large weights": weights(1e14),
    "most samples of all": samples(4294967295),
    "as many samples as are allowed": samples(100_000_000),
}


@pytest.mark.parametrize("since", [0, 3])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_poisoner_is_refused_and_the_others_finish_the_training(
    lie: Callable[[fedround.Update], fedround.Update], since: int
) -> None:
    with testing.platform(rounds=ROUNDS, min_clients=3) as p:
        p.run(Honest(), Honest(), Honest(), Liar(lie, since))
    assert p.global_model is not None
    assert p.global_model.tolist() == [float(ROUNDS)] * 4
    assert [completed.updates for completed in p.rounds[since + 1 :]] == [3] * (ROUNDS - since - 1)
