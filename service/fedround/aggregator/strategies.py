"""How updates become a global model: strategies. A protocol core: no I/O.

Some fold each update into sums as it comes (`Strategy`), some combine all of them at the end (`Combining`, for which `running.py`
keeps them). A strategy computes one tensor of one attempt; its `Spec` says which. Updates are checked before they are folded; an
exception from `fold` all the same leaves the sums unusable, and the attempt is lost. The bits of the result depend on the order of
folding alone, which the ledger keeps.
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
    """What the aggregator asks of a strategy. It is made with the `Spec` of a tensor, and the options of the settings."""

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """Add an update: its sample count, and the tensor in 1-D blocks of at most `BLOCK` elements, good until the next one."""
        ...

    def result(self) -> Array:
        """Return the tensor of the global model, flat and finite, of the dtype `spec.result`. Called once, at the end."""
        ...


class Combining(Protocol):
    """A strategy that needs all updates at once, block by block. It too is made with the `Spec` of a tensor and the options."""

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        """Return a block of the tensor of the global model.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            updates: That block of each, float64 of shape (updates, elements). It may be overwritten.

        Returns:
            A finite number for each element.
        """
        ...


class Choosing(Combining, Protocol):
    """A combining strategy that first chooses whole updates: `combine` is given these alone."""

    def choose(self, samples: Sequence[int], distances: Array) -> Sequence[int]:
        """Return which updates are combined, by their positions.

        Called once in an attempt, before `combine`, on the strategy of the first tensor: the choice is that for all tensors.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            distances: The L2 distance between each two updates over all their floats, float64 of shape (updates, updates). Where
                there are no floats, over the integers.
        """
        ...


class Remembering(Protocol):
    """What a strategy of any kind may have in addition, to see the round's model and to remember something until the next round.

    A round that fails, or is tried again, changes nothing: the next attempt begins with the same model and the same state.
    """

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        """Begin the attempt. Called once, before anything is folded or combined.

        Where this raises an error for a state that was kept over a restart, by another strategy perhaps, it is called a second
        time with an empty state. Any other error loses the attempt.

        Args:
            model: The tensor of the round's model, flat and read-only, with the same numbers as in updates: bfloat16 is float32.
                None where there is no model yet. For `CombiningBytes` a read-only memoryview of the model.
            state: What `state` returned after the round that made this model; the arrays are read-only. Empty at first.
        """
        ...

    def state(self) -> Mapping[str, Array]:
        """Return what is to be remembered: named arrays of any shape. Called once, after the result.

        They are kept, in memory and beside the model on disk, as long as the model is. Their dtypes are those of tensors.
        """
        ...


class CombiningBytes(Protocol):
    """A strategy for a format that only it and the participants understand. It is made like the others; the `Spec` says nothing."""

    codec: Literal["bytes"]

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> "Buffer":
        """The global model: at least one byte.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            updates: What followed the count in each: at least one byte, read-only.
        """
        ...


StrategyFactory = Callable[..., Strategy | Combining | CombiningBytes]
"""Makes a strategy for a tensor and an attempt, from its `Spec` and the options of the settings as keyword arguments."""

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


ROBUST = frozenset({"median", "trimmed_mean", "krum", "multi_krum"})
"""Those that bound the influence of each update themselves."""
UNWEIGHTED = ROBUST | {"model_sum"}
"""Those to which the sample counts of updates do not matter."""


def load_strategy(name: str) -> StrategyFactory:
    """The strategy of that name, or the class that `module:Class` names.

    Raises:
        ConfigurationError: there is none.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, _, attribute = name.partition(":")
    known = ", ".join(sorted(STRATEGIES))
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigurationError(f"there is no strategy {name!r}: AGGREGATOR_STRATEGY is one of {known}, or module:Class")
    try:
        factory: StrategyFactory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"AGGREGATOR_STRATEGY: {name} cannot be imported: {error}; is it installed, or on PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise ConfigurationError(f"AGGREGATOR_STRATEGY: {name} is no class")
    return factory
