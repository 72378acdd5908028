"""A first participant, written with the API of xain-sdk 0.8, which fedround understands."""

import argparse
import logging
import random
from io import BytesIO

import numpy as np

import xain_sdk

LOG = logging.getLogger(__name__)

SIZE = 5


class Participant(xain_sdk.ParticipantABC):
    """Instead of training, it picks a number: none of the model's five weights is ever larger than in the round before."""

    def __init__(self, upper_bound: float) -> None:
        self.upper_bound = upper_bound

    def deserialize_training_input(self, data: bytes) -> np.ndarray | None:
        """What came from the aggregator as an array: nothing at all, before the first round has been aggregated."""
        return np.load(BytesIO(data), allow_pickle=False) if data else None

    def train_round(self, global_weights: np.ndarray | None) -> tuple[int, np.ndarray]:
        """One sample, and five equal weights between 0 and the global model's."""
        if global_weights is not None:
            LOG.info("global weights: %s", global_weights)
            self.upper_bound = global_weights[0]
        local_weights = np.full(SIZE, random.uniform(0.0, self.upper_bound))
        LOG.info("local weights: %s", local_weights)
        return 1, local_weights

    def serialize_training_result(self, training_result: tuple[int, np.ndarray]) -> bytes:
        """The format of the platform's default aggregator: the number of samples in 4 bytes, then what numpy.save writes."""
        samples, weights = training_result
        writer = BytesIO()
        writer.write(samples.to_bytes(4, "big"))
        np.save(writer, weights, allow_pickle=False)
        return writer.getvalue()


def main() -> None:
    """Take part in the training of the platform on this machine."""
    logging.basicConfig(format="%(asctime)s %(levelname)-8s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description="run a participant")
    parser.add_argument("--upper-bound", required=True, type=float, help="the largest number that the first round may pick")
    parser.add_argument("--coordinator-url", default="http://localhost:8081", help="where the coordinator is [%(default)s]")
    arguments = parser.parse_args()
    xain_sdk.configure_logging(log_http_requests=True)
    xain_sdk.run_participant(Participant(arguments.upper_bound), arguments.coordinator_url)


if __name__ == "__main__":
    main()
