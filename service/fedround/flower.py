"""Run a Flower app as a participant, without a SuperLink or a SuperNode.

    fedround participant --flower my_package.client_app:app

Requires Flower: `pip install fedround[flower]`. `docs/guides/flower.md` maps its concepts to those of fedround.
"""

import inspect
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedround.common.evaluation import Evaluation
from fedround.errors import ConfigurationError, WrongWeights
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.load import FLOWER, find
from fedround.participant.round import Round, Shard, current_round
from fedround.tensors.weights import Array

try:
    from flwr.app import Array as FlowerArray  # type: ignore[import-not-found, unused-ignore]
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict  # type: ignore[import-not-found, unused-ignore]
    from flwr.client import Client, NumPyClient  # type: ignore[import-not-found, unused-ignore]
    from flwr.clientapp import ClientApp  # type: ignore[import-not-found, unused-ignore]
except ImportError as error:
    raise ConfigurationError(f"{FLOWER}: Flower cannot be imported: {error}; pip install fedround[flower]") from error

__all__ = ["FlowerApp"]

EVALUATE_NOT_IMPLEMENTED = 4
"""Status of a client without `evaluate` (`flwr.common.Code`)."""


class FlowerApp(NumPyParticipant):
    """A participant that trains with a Flower app.

    Args:
        app: `module:name` of a `ClientApp`, of a `NumPyClient` or `Client` (an instance or a class), or of a function that
            returns one. A class or a function is called with the `Context` for each round, or once if it takes no argument.
        run_config: Values that replace those of `[tool.flwr.app.config]` in the working directory's `pyproject.toml`.
    """

    def __init__(self, app: str, run_config: Mapping[str, Any] | None = None) -> None:
        self._app = _client_app(find(app, FLOWER), app)
        self._legacy = self._app._call is not None
        """Whether the app has a `client_fn`. Its arrays then have no names."""
        self._context = Context(1, 1, {}, RecordDict(), _project_config() | _flat(run_config or {}))

    def initial_weights(self) -> Mapping[str, Array]:
        """Return the result of the client's `get_parameters`. Raises `NotImplementedError` if the app has no `client_fn`."""
        if not self._legacy:
            raise NotImplementedError
        return self._initial(Shard(0, 1))

    def train_round(self, weights: Any, /) -> Update:
        """Send the app a train message with the global model, and return its reply."""
        round = current_round()
        tensors = self._initial(round.shard) if weights is None else weights
        reply = self._ask("train", self._content("fitins.", tensors, round), round.shard)
        samples, metrics = self._metrics(reply, "fitres.metrics")
        round.report(**metrics)
        trained = _arrays(reply)
        return Update(samples, trained["0"] if isinstance(weights, np.ndarray) and trained.keys() == {"0"} else trained)

    def evaluate(self, weights: Any, /) -> Evaluation | None:
        """Send the app an evaluate message with the global model, and return its reply. None: the app does not evaluate."""
        if not self._legacy and not any(name.startswith("evaluate") for name in self._app._registered_funcs):
            return None
        round = current_round()
        reply = self._ask("evaluate", self._content("evaluateins.", weights, round), round.shard)
        if reply is None:
            return None
        samples, metrics = self._metrics(reply, "evaluateres.metrics")
        loss = {"loss": reply["evaluateres.loss"]["loss"]} if self._legacy else {}
        return Evaluation(samples, **loss, **metrics)

    def _content(self, prefix: str, weights: Any, round: Round) -> Any:
        """Return the content of a message with the global model."""
        tensors = {"0": weights} if isinstance(weights, np.ndarray) else weights
        if self._legacy:
            if tensors.keys() != {str(number) for number in range(len(tensors))}:
                raise WrongWeights(
                    "the global model has named tensors, a NumPyClient has none: make the model with fedround model --flower"
                )
            tensors = {str(number): tensors[str(number)] for number in range(len(tensors))}
        arrays = ArrayRecord({name: FlowerArray(array) for name, array in tensors.items()})
        if self._legacy:
            return RecordDict({f"{prefix}parameters": arrays, f"{prefix}config": ConfigRecord({"server_round": round.number + 1})})
        return RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": round.number + 1})})

    def _metrics(self, reply: Any, name: str) -> tuple[Any, dict[str, float]]:
        """Return the number of examples of a reply, and its other numbers."""
        metrics = {name: value for record in reply.metric_records.values() for name, value in record.items()}
        samples = metrics.pop("num_examples" if self._legacy else "num-examples", None)
        metrics = reply[name] if self._legacy else metrics
        return samples, {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    def _initial(self, shard: Shard) -> dict[str, Array]:
        if not self._legacy:
            raise WrongWeights("this app needs a global model to train: set AGGREGATOR_INITIAL_MODEL to a .safetensors file")
        return _arrays(self._ask("get_parameters", RecordDict({"getparametersins.config": ConfigRecord()}), shard))

    def _ask(self, kind: str, content: Any, shard: Shard) -> Any:
        self._context.node_config = {"partition-id": shard.index, "num-partitions": shard.count}
        metadata = Metadata(1, "1", 0, 1, "", "", time.time(), 1e9, kind)
        reply = self._app(Message(metadata=metadata, content=content), self._context)
        if reply.has_error():
            raise RuntimeError(f"the Flower app replied with an error: {reply.error.reason}")
        for name, record in reply.content.config_records.items():
            if name.endswith(".status") and record["code"] == EVALUATE_NOT_IMPLEMENTED:
                return None
            if name.endswith(".status") and record["code"] != 0:
                raise RuntimeError(f"the Flower client replied with an error: {record['message']}")
        return reply.content


def _client_app(found: Any, name: str) -> Any:
    if isinstance(found, ClientApp):
        return found
    if isinstance(found, NumPyClient | Client):
        return ClientApp(lambda context: found.to_client())
    if not callable(found):
        raise ConfigurationError(f"{FLOWER}: {name} must be a ClientApp, a NumPyClient, or a function that returns one")
    if not inspect.signature(found).parameters:
        return _client_app(found(), name)  # one client for all rounds
    return ClientApp(lambda context: found(context).to_client())


def _arrays(content: Any) -> dict[str, Array]:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise WrongWeights(f"the reply of the Flower app has {len(records)} array records, not one")
    return {name: array.numpy() for name, array in records[0].items()}


def _project_config() -> dict[str, Any]:
    file = Path("pyproject.toml")
    tool = tomllib.loads(file.read_text("utf-8")).get("tool", {}) if file.exists() else {}
    return _flat(tool.get("flwr", {}).get("app", {}).get("config", {}))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of nested tables with dots, like Flower."""
    flat = dict[str, Any]()
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
