"""A participant that follows the round configuration."""

import time
from typing import Any

import numpy as np

import fedround


class Configured(fedround.NumPyParticipant):
    """Adds the configured `step`, by default 1, to all weights."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def train_round(self, weights: Any, /) -> fedround.Update:
        round = fedround.current_round()
        step = float(round.config.get("step", 1))
        round.report(step=step, rounds=round.rounds or -1)
        time.sleep(self.seconds)
        return fedround.Update(1, (np.zeros(1) if weights is None else weights) + step)
