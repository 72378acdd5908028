"""The benchmark's participant for fedround; as a program, with nothing around it that could be asked how it is."""

import sys
import time

from bench.model import trained

from fedround import NumPyParticipant, Update
from fedround.weights import Array


class Ours(NumPyParticipant):
    """`seconds`: how long a round of training takes, at least."""

    def __init__(self, k: int, size: int, seconds: float = 0.0) -> None:
        self.k, self.size, self.seconds = k, size, seconds

    def train_round(self, training_input: Array | None) -> Update:
        time.sleep(self.seconds)
        return Update(1, trained(self.k, self.size, training_input))


if __name__ == "__main__":
    from fedround import run_participant

    k, size, seconds, url, period = sys.argv[1:]
    run_participant(Ours(int(k), int(size), float(seconds)), url, float(period))
