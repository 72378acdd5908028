"""Flower code in both styles: linear regression on the rows of the partition. `main` trains it with fedround."""

import json
import sys
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found, unused-ignore]
from flwr.client import NumPyClient  # type: ignore[import-not-found, unused-ignore]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found, unused-ignore]

COEFFICIENTS, BIAS = np.array([2.0, -1.0, 0.5]), 3.0


def rows(context: Context) -> tuple[Any, Any]:
    x = np.random.default_rng(7).normal(size=(90, 3))
    part = slice(context.node_config["partition-id"], None, context.node_config["num-partitions"])
    return x[part], (x @ COEFFICIENTS + BIAS)[part]


def descend(w: Any, b: Any, x: Any, y: Any, steps: int) -> tuple[Any, Any, float]:
    for _ in range(steps):
        error = x @ w + b - y
        w, b = w - 0.2 * x.T @ error / len(y), b - 0.2 * error.mean(keepdims=True)
    return w, b, float(np.mean((x @ w + b - y) ** 2))


class Regression(NumPyClient):  # type: ignore[misc, unused-ignore]
    def __init__(self, context: Context) -> None:
        self.data, self.steps = rows(context), context.run_config["local.steps"]

    def get_parameters(self, config: dict[str, Any]) -> list[Any]:
        return [np.zeros(3), np.zeros(1)]

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        w, b, loss = descend(parameters[0], parameters[1], *self.data, self.steps)
        return [w, b], len(self.data[1]), {"loss": loss, "server_round": config["server_round"], "note": "text"}


class Judging(Regression):
    """A client that also evaluates."""

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        x, y = self.data
        return float(np.mean((x @ parameters[0] + parameters[1] - y) ** 2)), len(y), {"bias": float(parameters[1][0])}


def client_fn(context: Context) -> Any:
    return Regression(context).to_client()


class Alone(NumPyClient):  # type: ignore[misc, unused-ignore]
    """A client without a context. It counts the rounds that it has seen."""

    rounds = 0

    def get_parameters(self, config: dict[str, Any]) -> list[Any]:
        return [np.zeros(3), np.zeros(1)]

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        self.rounds += 1
        context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {"local.steps": 5})
        weights, samples, _ = Regression(context).fit(parameters, config)
        return weights, samples, {"rounds": self.rounds}


legacy = ClientApp(client_fn)
instance = Alone()
app = ClientApp()


@app.train()  # type: ignore[untyped-decorator, unused-ignore]
def train(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"]
    x, y = rows(context)
    w, b, loss = descend(arrays["head.weight"].numpy(), arrays["head.bias"].numpy(), x, y, context.run_config["local.steps"])
    calls = context.state.setdefault("calls", MetricRecord({"count": 0}))
    calls["count"] += 1
    metrics = {
        "num-examples": len(y),
        "loss": loss,
        "calls": calls["count"],
        "server_round": message.content["config"]["server-round"],
    }
    trained = ArrayRecord({"head.weight": Array(w), "head.bias": Array(b)})
    return Message(RecordDict({"arrays": trained, "metrics": MetricRecord(metrics)}), reply_to=message)


judging = ClientApp(lambda context: Judging(context).to_client())
judge = ClientApp()
judge.train()(train)


@judge.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
def evaluate(message: Message, context: Context) -> Message:
    arrays, (x, y) = message.content["arrays"], rows(context)
    error = x @ arrays["head.weight"].numpy() + arrays["head.bias"].numpy() - y
    metrics = {"num-examples": len(y), "loss": float(np.mean(error**2)), "bias": float(arrays["head.bias"].numpy()[0])}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def main(name: str) -> None:
    import fedround.testing
    from fedround.flower import FlowerApp

    silos = [FlowerApp(f"support.flower_silos:{name}", {"local": {"steps": 5}}) for _ in range(3)]
    initial = {"head.weight": np.zeros(3), "head.bias": np.zeros(1)} if name in ("app", "judge") else None
    with fedround.testing.platform(rounds=10, min_clients=3, initial_model=initial) as p:
        p.run(*silos)
    result = {
        "model": {name: array.tolist() for name, array in p.global_model.items()},
        "figures": dict(p.rounds[-1].metrics),
        "samples": p.rounds[-1].samples,
        "evaluation": dict(p.rounds[-1].evaluation),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
