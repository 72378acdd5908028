"""`fedround tutorial`: the tutorial's participant. Its model is one number, five times. It falls towards 0 over the rounds."""

import argparse
import logging
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedround.errors import FedroundError
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.run import run_participant
from fedround.tensors.weights import Array

LOG = logging.getLogger(__name__)

SIZE = 5


class TutorialParticipant(NumPyParticipant):
    """A participant that picks a random number between 0 and the global model's number, or `upper_bound` without a global model."""

    def __init__(self, *, upper_bound: float = 100.0) -> None:
        self._upper_bound = upper_bound

    def train_round(self, training_input: Array | None) -> Update:
        """Return one sample, and five equal weights."""
        bound = self._upper_bound if training_input is None else float(training_input[0])
        picked = random.uniform(0.0, bound)
        LOG.info("global weight %s, local weight %s", "none yet" if training_input is None else bound, picked)
        return Update(samples=1, weights=np.full(SIZE, picked))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `run`."""
    parser.add_argument(
        "--upper-bound", required=True, type=float, help="Initial upper bound for picking a random float to send to the coordinator"
    )
    parser.add_argument("--coordinator-url", default="http://localhost:8081", help="URL of the coordinator [default %(default)s]")


def run(arguments: Mapping[str, Any]) -> int:
    """Run the tutorial's participant until training is complete. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-8s %(message)s")
    participant = TutorialParticipant(upper_bound=arguments["upper_bound"])
    try:
        run_participant(participant, arguments["coordinator_url"], handle_signals=True)
    except FedroundError as error:
        LOG.error("%s", error)
        return 1
    return 0


def main() -> int:
    """Run this module as a program. Returns the exit code."""
    parser = argparse.ArgumentParser(description="run a participant")
    add_arguments(parser)
    return run(vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
