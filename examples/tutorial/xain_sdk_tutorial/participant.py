"""A participant with the API of xain-sdk 0.8, which fedround runs unchanged."""

import argparse
import logging
import random
from io import BytesIO

import numpy as np

import xain_sdk

LOG = logging.getLogger(__name__)

SIZE = 5


class Participant(xain_sdk.ParticipantABC):
    """A participant that picks a random number in place of training. The model's five weights never grow."""

    def __init__(self, upper_bound: float) -> None:
        self.upper_bound = upper_bound

    def deserialize_training_input(self, data: bytes) -> np.ndarray | None:
        """Return the global model as an array, or None before the first round is aggregated."""
        return np.load(BytesIO(data), allow_pickle=False) if data else None

    def train_round(self, global_weights: np.ndarray | None) -> tuple[int, np.ndarray]:
        """Return one sample, and five equal weights between 0 and those of the global model."""
        if global_weights is not None:
            LOG.info("global weights: %s", global_weights)
            self.upper_bound = global_weights[0]
        local_weights = np.full(SIZE, random.uniform(0.0, self.upper_bound))
        LOG.info("local weights: %s", local_weights)
        return 1, local_weights

    def serialize_training_result(self, training_result: tuple[int, np.ndarray]) -> bytes:
        """Return the number of samples in 4 bytes, then the array as numpy.save writes it."""
        samples, weights = training_result
        writer = BytesIO()
        writer.write(samples.to_bytes(4, "big"))
        np.save(writer, weights, allow_pickle=False)
        return writer.getvalue()


def main() -> None:
    """Train on the platform on this machine."""
    logging.basicConfig(format="%(asctime)s %(levelname)-8s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description="run a participant")
    parser.add_argument("--upper-bound", required=True, type=float, help="largest number that the first round may pick")
    parser.add_argument("--coordinator-url", default="http://localhost:8081", help="URL of the coordinator [%(default)s]")
    arguments = parser.parse_args()
    xain_sdk.configure_logging(log_http_requests=True)
    xain_sdk.run_participant(Participant(arguments.upper_bound), arguments.coordinator_url)


if __name__ == "__main__":
    main()
