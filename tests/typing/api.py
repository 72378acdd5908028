"""Code of users, for the type checker only. It is never run."""

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fedround
import xain_sdk


class Minimal(fedround.NumPyParticipant):
    """The usual way."""

    def train_round(self, training_input: NDArray[Any] | None) -> fedround.Update:
        now = fedround.current_round()
        rows = now.shard.of(np.zeros((100, 3)))
        if not now.cancelled:
            now.report(loss=0.5, rows=len(rows))
        return fedround.Update(samples=len(rows), weights=np.zeros(3))


class Named(fedround.NumPyParticipant):
    """An argument with another name."""

    def train_round(self, weights: NDArray[Any] | None) -> fedround.Update:
        return fedround.Update(1, np.zeros(3) if weights is None else weights)


class Plain(fedround.NumPyParticipant):
    """A plain tuple, floats of a certain size, no annotation of the argument."""

    def train_round(self, training_input: Any) -> tuple[int, NDArray[np.float32]]:
        return 1, np.zeros(3, np.float32)


class Prox(fedround.NumPyParticipant):
    """Named tensors, kept near to the global model."""

    def train_round(self, weights: dict[str, NDArray[Any]]) -> fedround.Update:
        anchor = {name: array.copy() for name, array in weights.items()}
        for name, gradient in fedround.proximal_gradient(weights, anchor).items():
            weights[name] -= 0.1 * gradient
        weights["head"] -= fedround.proximal_gradient(weights["head"], anchor["head"])
        return fedround.Update(1, weights)


class Layers(fedround.NumPyParticipant):
    """A model that is a list of arrays."""

    layers: list[NDArray[Any]]

    def train_round(self, training_input: NDArray[Any] | None) -> fedround.Update:
        if training_input is not None:
            self.layers = fedround.unflatten(training_input, like=self.layers)
        return fedround.Update(1, fedround.flatten(self.layers))


class Own(fedround.ParticipantABC[dict[str, float], dict[str, float]]):
    """A custom format."""

    def train_round(self, training_input: dict[str, float]) -> dict[str, float]:
        return training_input

    def serialize_training_result(self, training_result: dict[str, float]) -> bytes:
        return repr(training_result).encode()

    def deserialize_training_input(self, data: bytes) -> dict[str, float]:
        return {"size": len(data)}


class Tutorial(xain_sdk.ParticipantABC):  # type: ignore[type-arg]  # that of 0.8 took none
    """Code for xain-sdk 0.8."""

    def train_round(self, global_weights: np.ndarray | None) -> tuple[int, np.ndarray]:
        return 1, np.zeros(3)

    def serialize_training_result(self, training_result: tuple[int, np.ndarray]) -> memoryview:
        return memoryview(b"")

    def deserialize_training_input(self, data: bytes) -> np.ndarray | None:
        return None


def run() -> None:
    """Both ways to run a participant."""
    fedround.run_participant(Minimal(), "http://localhost:8081")
    fedround.run_participant(Plain(), "http://localhost:8081", 0.5, shard=(3, 10), give_up_after=60.0, handle_signals=True)
    options: fedround.Options = {"name": "silo-1", "give_up_after": None}
    asyncio.run(fedround.arun_participant(Layers(), "http://localhost:8081", **options))
    fedround.run_participant(Named(), "http://localhost:8081", **options)
    try:
        xain_sdk.run_participant(Tutorial(), "http://localhost:8081", heartbeat_period=1)
    except xain_sdk.ParticipantError:
        raise
    except fedround.CoordinatorUnreachable:
        fedround.run_participant(Own(), "https://fl.example", token="secret", tls_ca_file="ca.pem", observers=[print])


def test() -> None:
    """A test of a custom participant."""
    with fedround.testing.platform(rounds=1) as p:
        p.run(Minimal(), shards=2)
    model: NDArray[Any] | None = p.global_model
    assert model is not None
