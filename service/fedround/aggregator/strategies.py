"""Strategies: they combine updates into a global model. A protocol core: no I/O.

A strategy object computes one tensor, described by its `Spec`, in one attempt. A `Strategy` folds each update as it arrives. A
`Combining` strategy combines all updates at the end; `running.py` collects them. The aggregator checks updates before it folds
them. If `fold` raises an exception nevertheless, the attempt is lost. The exact bits of the result depend only on the order of
folding, which the ledger records.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol

from fedround.aggregator.averages import ModelSum, WeightedAverage
from fedround.aggregator.optimisers import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedround.aggregator.robust import Krum, Median, MultiKrum, TrimmedMean
from fedround.errors import ConfigurationError
from fedround.tensors.weights import Array

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

__all__ = [
    "ROBUST",
    "STRATEGIES",
    "UNWEIGHTED",
    "Choosing",
    "Combining",
    "CombiningBytes",
    "FedAdagrad",
    "FedAdam",
    "FedAvgM",
    "FedYogi",
    "Krum",
    "Median",
    "ModelSum",
    "MultiKrum",
    "Remembering",
    "Strategy",
    "StrategyFactory",
    "TrimmedMean",
    "WeightedAverage",
    "load_strategy",
]


class Strategy(Protocol):
    """A strategy that folds updates. Its constructor takes the `Spec` of a tensor, and the options of the settings."""

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """Add an update: its sample count, and the tensor in 1-D blocks of at most `BLOCK` elements, each valid until the next."""
        ...

    def result(self) -> Array:
        """Return the tensor of the global model: flat, finite, with the dtype `spec.result`. Called once, at the end."""
        ...


class Combining(Protocol):
    """A strategy that combines all updates block by block. Its constructor takes the same arguments as that of `Strategy`."""

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        """Return a block of the tensor of the global model.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            updates: The block of each update, float64 of shape (updates, elements). The strategy may overwrite it.

        Returns:
            A finite number for each element.
        """
        ...


class Choosing(Combining, Protocol):
    """A combining strategy that first chooses whole updates: `combine` receives only these."""

    def choose(self, samples: Sequence[int], distances: Array) -> Sequence[int]:
        """Return the positions of the updates to combine.

        The aggregator calls this once in an attempt, before `combine`, for the first tensor. The choice applies to all tensors.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            distances: The L2 distance between each two updates over all their floats, float64 of shape (updates, updates). If
                there are no floats, the distance over the integers.
        """
        ...


class Remembering(Protocol):
    """Optional methods for any strategy: `begin` receives the round's model, and `state` persists arrays until the next round.

    A failed attempt changes nothing: the next attempt begins with the same model and the same state.
    """

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        """Begin the attempt. Called once, before the first `fold` or `combine`.

        After a restart, the state may be that of another strategy. If `begin` raises an error for it, the aggregator calls `begin`
        again with an empty state. After any other error the attempt is lost.

        Args:
            model: The tensor of the round's model, flat and read-only, with the same values as in updates: bfloat16 is float32.
                None if there is no model yet. For `CombiningBytes`, a read-only memoryview of the model.
            state: The arrays that `state` returned after the round that made this model, read-only. Empty at first.
        """
        ...

    def state(self) -> Mapping[str, Array]:
        """Return the state to keep: named arrays of any shape. Called once, after the result.

        The aggregator keeps them in memory and on disk as long as the model. Their dtypes must be valid for tensors.
        """
        ...


class CombiningBytes(Protocol):
    """A strategy for a custom format. Its constructor takes the same arguments as that of `Strategy`; ignore the `Spec`."""

    codec: Literal["bytes"]

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> "Buffer":
        """Return the global model: at least one byte.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            updates: The content of each update after its sample count: at least one byte, read-only.
        """
        ...


StrategyFactory = Callable[..., Strategy | Combining | CombiningBytes]
"""Makes a strategy for a tensor and an attempt, from the tensor's `Spec` and the options as keyword arguments."""

STRATEGIES: Mapping[str, StrategyFactory] = {
    "weighted_average": WeightedAverage,
    "model_sum": ModelSum,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}
ALIASES = {"fedavg": "weighted_average"}
"""Other names of strategies."""

ROBUST = frozenset({"median", "trimmed_mean", "krum", "multi_krum"})
"""Strategies that limit the influence of each update."""
UNWEIGHTED = ROBUST | {"model_sum"}
"""Strategies that ignore the sample counts of updates."""


def load_strategy(name: str) -> StrategyFactory:
    """Return the strategy with that name, or the class that `module:Class` names.

    Raises:
        ConfigurationError: There is no such strategy, or it cannot be imported.
    """
    if (name := ALIASES.get(name, name)) in STRATEGIES:
        return STRATEGIES[name]
    module, _, attribute = name.partition(":")
    known = ", ".join(sorted(STRATEGIES))
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigurationError(f"AGGREGATOR_STRATEGY: unknown strategy {name!r}: expected one of {known}, or module:Class")
    try:
        factory: StrategyFactory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"AGGREGATOR_STRATEGY: {name} cannot be imported: {error}; is it installed, or on PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise ConfigurationError(f"AGGREGATOR_STRATEGY: {name} is not a class")
    return factory
