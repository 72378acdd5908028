"""Running aggregates: what an attempt's strategies have made of the updates counted so far.

`Folded` has a strategy for each tensor, which adds each update. For strategies that combine all updates at the end, `Collected` and
`CollectedBytes` collect the updates in a file of the spool.
"""

import mmap
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import index
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedround.aggregator.codecs import Model, Update
from fedround.aggregator.remembering import StrategyStates, seen
from fedround.aggregator.result import REAL
from fedround.aggregator.spool import Spool, write
from fedround.aggregator.state import State
from fedround.aggregator.strategies import Combining, CombiningBytes, Strategy
from fedround.aggregator.updates import fill
from fedround.errors import WrongWeights
from fedround.tensors.weights import Array, Layout, Spec

AT_ONCE = 1 << 21
"""Maximum number of weights, over all updates, in a block to combine: 16 MB of float64."""
COLUMNS = 1 << 12
"""Maximum number of weights of each update in a block to compare, which fits into the processor's cache."""


class Running(Protocol):
    """The running aggregate of an attempt."""

    def begin(self, model: Model | None) -> None:
        """Pass the round's model and its state to the strategies. Called once, before the first update."""
        ...

    def add(self, update: Update) -> None:
        """Add an update."""
        ...

    def results(self) -> Iterator[Array]:
        """Yield each averaged tensor, flat, in the dtype `Spec.result`. Called once, at the end: it consumes the aggregate."""
        ...

    def state(self) -> State:
        """Return the strategies' state for the next round. Called once, after all results."""
        ...


class Folded:
    """The running aggregate of strategies that fold: one strategy for each tensor. It needs no other memory."""

    def __init__(self, layout: Layout, make: Callable[[Spec], Strategy]) -> None:
        self._layout = layout
        self._specs = [spec for spec in layout.tensors if spec.averaged]
        self._strategies = [make(spec) for spec in self._specs]
        self._states = StrategyStates([spec.name for spec in self._specs])
        self.state = self._states.state

    def begin(self, model: Model | None) -> None:
        """See `Running.begin`."""
        self._states.begin(self._strategies, model, seen(self._layout, model))

    def add(self, update: Update) -> None:
        """See `Running.add`."""
        for strategy, blocks in zip(self._strategies, update.tensors(), strict=True):
            strategy.fold(update.samples, blocks)

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Each step of the iteration releases the sums of the tensor before."""
        self._strategies.reverse()
        for spec in self._specs:
            yield self._result(spec, self._strategies.pop())

    def _result(self, spec: Spec, strategy: Strategy) -> Array:
        result = strategy.result()
        self._states.take(spec.name, strategy)
        return result


class _Updates:
    """The collected updates: their sample counts, and a file. `SpoolFull` leaves earlier updates intact."""

    def __init__(self, spool: Spool) -> None:
        self.samples: list[int] = []
        self.ends = [0]
        """Byte offsets in the file: the start of the first update, then the end of each."""
        self.file = spool.create()
        # The file closes also when an attempt is abandoned and its memory is freed.
        self.close = weakref.finalize(self, self.file.close)

    def add(self, samples: int, blocks: Iterable[Array]) -> None:
        end = self.file.seek(self.ends[-1])  # overwrite what remains of an update that did not fit
        for block in blocks:
            write(self.file, block.view(np.uint8).data)
            end += block.nbytes
        self.ends.append(end)
        self.samples.append(samples)


class _Tensor(NamedTuple):
    """A tensor in a file of updates."""

    spec: Spec
    dtype: np.dtype[Any]
    """Its dtype in the file."""
    offset: int
    """Its byte offset in an update."""


class Collected:
    """The running aggregate of strategies that combine all updates.

    The file has every update, with bfloat16 as float32. Memory has one tensor of the result, and one block of each update.
    """

    def __init__(self, layout: Layout, make: Callable[[Spec], Combining], spool: Spool) -> None:
        self._layout = layout
        self._tensors = list(_tensors(layout))
        self._strategies = [make(tensor.spec) for tensor in self._tensors]
        self._states = StrategyStates([tensor.spec.name for tensor in self._tensors])
        self.state = self._states.state
        self._updates = _Updates(spool)

    def begin(self, model: Model | None) -> None:
        """See `Running.begin`."""
        self._states.begin(self._strategies, model, seen(self._layout, model))

    def add(self, update: Update) -> None:
        """See `Running.add`. Raises `SpoolFull`, and then changes nothing."""
        tensors = zip(update.tensors(), self._tensors, strict=True)
        self._updates.add(update.samples, (block.astype(t.dtype, copy=False) for blocks, t in tensors for block in blocks))

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Raises `WrongWeights` if the strategy returns a wrong shape or chooses invalid updates."""
        chosen = self._chosen()
        for tensor, strategy in zip(self._tensors, self._strategies, strict=True):
            result = self._combined(strategy, tensor, chosen)
            self._states.take(tensor.spec.name, strategy)
            yield result
        self._updates.close()

    def _chosen(self) -> Sequence[int]:
        """Return the positions of the updates to combine."""
        positions = range(len(self._updates.samples))
        strategy: Any = next(iter(self._strategies), None)  # None if all tensors are booleans
        if not hasattr(strategy, "choose"):
            return positions
        chosen: Sequence[int] = [index(one) for one in strategy.choose(self._updates.samples, self._distances())]
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(positions):
            raise WrongWeights(f"the strategy chose {chosen} of {len(positions)} updates: choose different positions from 0 on")
        return chosen

    def _distances(self) -> Array:
        """Return the L2 distances between the updates. This reads all updates once."""
        positions, measured = range(len(self._updates.samples)), frozenset(self._layout.measured)
        squares = np.zeros((len(positions), len(positions)))
        for tensor in self._tensors:
            if tensor.spec in measured:
                for _, rows in self._blocks(tensor, positions):
                    _add_squares(squares, rows)
        return np.sqrt(squares + squares.T)

    def _combined(self, strategy: Combining, tensor: _Tensor, chosen: Sequence[int]) -> Array:
        samples = [self._updates.samples[one] for one in chosen]
        result = np.empty(tensor.spec.count, tensor.spec.result)
        for start, rows in self._blocks(tensor, chosen):
            block = result[start : start + rows.shape[1]]
            combined = np.asarray(strategy.combine(samples, rows))
            if combined.dtype.kind not in REAL:
                raise WrongWeights(f"the strategy returned {combined.dtype} instead of numbers")
            if np.shape(combined) != block.shape:
                raise WrongWeights(f"the strategy combined updates of {block.size} weights into shape {np.shape(combined)}")
            with np.errstate(over="ignore"):
                block[:] = combined
        return result

    def _blocks(self, tensor: _Tensor, chosen: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """Yield the start of each block of the tensor, and the block: float64 of shape (updates, elements)."""
        width = max(1, AT_ONCE // len(chosen))
        for start in range(0, tensor.spec.count, width):
            row = np.empty(min(width, tensor.spec.count - start), tensor.dtype)
            rows = np.empty((len(chosen), row.size))
            for weights, one in zip(rows, chosen, strict=True):
                self._updates.file.seek(self._updates.ends[one] + tensor.offset + start * tensor.dtype.itemsize)
                fill(row, self._updates.file)
                weights[:] = row
            yield start, rows


def _tensors(layout: Layout) -> Iterator[_Tensor]:
    offset = 0
    for spec in layout.tensors:
        if spec.averaged:
            # An update of one integer array makes a model of float64.
            dtype = np.dtype("<f4") if spec.dtype.name == "bfloat16" else spec.dtype
            yield _Tensor(spec, dtype, offset)
            offset += spec.count * dtype.itemsize


def _add_squares(squares: Array, rows: Array) -> None:
    """Add the square of the distance between rows i and j to `squares[i, j]`, for i < j.

    This uses differences, not products: if one update is very large, products lose the distances between the others.
    """
    for start in range(0, rows.shape[1], COLUMNS):
        part = rows[:, start : start + COLUMNS]
        for number, row in enumerate(part[:-1]):
            difference = part[number + 1 :] - row
            squares[number, number + 1 :] += np.einsum("ij,ij->i", difference, difference)


class CollectedBytes:
    """The running aggregate of a strategy with a custom format: the updates and the result are bytes."""

    def __init__(self, strategy: CombiningBytes, spool: Spool) -> None:
        self._strategy = strategy
        self._states = StrategyStates([""])
        self.state = self._states.state
        self._updates = _Updates(spool)

    def begin(self, model: Model | None) -> None:
        """See `Running.begin`."""
        self._states.begin([self._strategy], model, [model and model.tensors[0].data.toreadonly()])

    def add(self, update: Update) -> None:
        """See `Running.add`. Raises `SpoolFull`, and then changes nothing."""
        self._updates.add(update.samples, (block for blocks in update.tensors() for block in blocks))

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Raises `WrongWeights` if the strategy returns no bytes."""
        # The map stays open, because the strategy may keep a view of it.
        whole = memoryview(mmap.mmap(self._updates.file.fileno(), 0, access=mmap.ACCESS_READ))
        views = [whole[begin:end] for begin, end in pairwise(self._updates.ends)]
        result = np.frombuffer(bytes(self._strategy.combine(self._updates.samples, views)), np.uint8)
        if not result.size:
            raise WrongWeights("the strategy returned an empty model")
        self._states.take("", self._strategy)
        self._updates.close()
        yield result
