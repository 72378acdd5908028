"""Trains with a strategy of Flower: reads a task as JSON, and writes the models of all rounds. Needs `flwr`."""

import json
import sys
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict  # type: ignore[import-not-found, unused-ignore]
from flwr.serverapp import strategy as strategies  # type: ignore[import-not-found, unused-ignore]


def reply(samples: int, update: list[float], node: int) -> Message:
    content = RecordDict({"arrays": record(np.array(update)), "metrics": MetricRecord({"num-examples": samples})})
    metadata = Metadata(1, str(node), node, 0, "", "", 0.0, 3600.0, "train")
    return Message(metadata=metadata, content=content)


def record(weights: Any) -> ArrayRecord:
    return ArrayRecord({"w": Array(weights)})


def main() -> None:
    task = json.load(sys.stdin)
    strategy = getattr(strategies, task["strategy"])(**task["options"])
    model, models = np.array(task["model"]), []
    for number, updates in enumerate(task["rounds"]):
        # What `configure_train` does in addition to choosing nodes.
        strategy.current_arrays = record(model) if task["strategy"] == "FedAvgM" else {"w": model}
        pairs = zip(task["samples"], updates, strict=True)
        replies = [reply(samples, update, node) for node, (samples, update) in enumerate(pairs, 1)]
        # Flower's rounds begin at 1, and FedAdam corrects its bias as if they began at 2: with 0 as if at 1, like Kingma and Ba.
        arrays, _ = strategy.aggregate_train(number, replies)
        model = arrays["w"].numpy()
        models.append(model.tolist())
    print(json.dumps(models))


if __name__ == "__main__":
    main()
