"""The state of strategies with the method `begin` (see `strategies.Remembering`): how they receive it and return it."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedround.aggregator.codecs import Model
from fedround.aggregator.state import State, checked
from fedround.errors import WrongWeights
from fedround.tensors.safetensors import shown
from fedround.tensors.values import BLOCK, unfit, widened
from fedround.tensors.weights import Array, Layout

LOG = logging.getLogger(__name__)


class StrategyStates:
    """The states of one attempt's strategies. `names`: the names of their tensors."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._taken: dict[str, dict[str, Array]] = {}

    def begin(self, strategies: Sequence[Any], model: Model | None, tensors: Sequence[Any]) -> None:
        """Begin the attempt: pass the round's model and the states to the strategies.

        If a state from a file does not fit, all strategies begin with an empty state.

        Args:
            strategies: The strategy of each tensor.
            model: The round's model, with its state.
            tensors: The part of the model for each strategy.
        """
        state = model.state if model else State()
        if not any(hasattr(strategy, "begin") for strategy in strategies):
            if state.tensors:
                LOG.warning("this strategy keeps no state: ignored the state of the model of %s", _round(model))
            return
        try:
            self._begin(strategies, tensors, state)
        except MemoryError:
            raise
        except Exception as error:
            if not state.restored:
                raise
            LOG.warning(
                "this strategy begins with an empty state: the state of the model of %s does not fit: %s", _round(model), error
            )
            self._begin(strategies, tensors, State())

    def _begin(self, strategies: Sequence[Any], tensors: Sequence[Any], state: State) -> None:
        for name, strategy, tensor in zip(self._names, strategies, tensors, strict=True):
            if hasattr(strategy, "begin"):
                strategy.begin(tensor, state.tensors.get(name, {}))

    def take(self, name: str, strategy: Any) -> None:
        """Take the new state of a strategy after its result. Raises `WrongWeights` if it cannot be stored."""
        if not hasattr(strategy, "begin") or not hasattr(strategy, "state"):
            return
        if not callable(strategy.state):
            raise WrongWeights(f"{shown(name)}: the strategy has `begin`, but its `state` is not a method")
        if arrays := checked(name, strategy.state()):
            self._taken[name] = arrays

    def state(self) -> State:
        """Return the new state of all strategies. Raises `WrongWeights` if no file can store it."""
        return State.of(self._taken)


def seen(layout: Layout, model: Model | None) -> list[Array | None]:
    """Return the averaged tensors of a model for strategies: flat, read-only, and with the same values as in updates.

    They are views, with two exceptions: bfloat16 is copied as float32, and tensors with constants are copied with 0 for these.
    """
    averaged = [number for number, spec in enumerate(layout.tensors) if spec.averaged]
    return [None if model is None else _seen(model.tensors[number]) for number in averaged]


def _seen(tensor: Array) -> Array:
    flat = widened(tensor.reshape(-1)).view()
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        if flat.dtype.kind == "f" and (mask := unfit(block)) is not None:
            if np.shares_memory(flat, tensor):
                flat = flat.copy()
            flat[start : start + BLOCK][mask] = 0
    flat.flags.writeable = False
    return flat


def _round(model: Model | None) -> str:
    return "the beginning" if model is None or model.round is None else f"round {model.round}"
