"""The benchmark's participant for the real xain-sdk 0.8.0. It reads and writes weights like the tutorial of that SDK."""

import io
import sys

import numpy as np
from bench.model import Weights, trained

import xain_sdk


class Theirs(xain_sdk.ParticipantABC):  # type: ignore[type-arg]  # 0.8's takes no types
    def __init__(self, k: int, size: int) -> None:
        self.k, self.size = k, size

    def deserialize_training_input(self, data: bytes) -> Weights | None:
        return np.load(io.BytesIO(data), allow_pickle=False) if data else None

    def train_round(self, training_input: Weights | None) -> Weights:
        return trained(self.k, self.size, training_input)

    def serialize_training_result(self, training_result: Weights) -> memoryview:
        writer = io.BytesIO()
        writer.write((1).to_bytes(4, byteorder="big"))
        np.save(writer, training_result, allow_pickle=False)
        return writer.getbuffer()[:]


if __name__ == "__main__":
    k, size, url, period = sys.argv[1:]
    xain_sdk.run_participant(Theirs(int(k), int(size)), url, float(period))
