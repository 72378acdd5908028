"""Running aggregates: what the strategies have of the updates that were counted so far.

`Folded` has a strategy for each tensor, which adds up. For strategies that need all updates at once, `Collected` and
`CollectedBytes` keep the updates of an attempt in a file of the spool.
"""

import mmap
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import index
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedround.aggregator.codecs import Model, Update
from fedround.aggregator.remembering import Memory, seen
from fedround.aggregator.spool import Spool, write
from fedround.aggregator.state import State
from fedround.aggregator.strategies import Combining, CombiningBytes, Strategy
from fedround.aggregator.updates import fill
from fedround.errors import WrongWeights
from fedround.tensors.weights import Array, Layout, Spec

AT_ONCE = 1 << 21
"""Weights of all updates together that are combined at once: 16 MB of float64."""
COLUMNS = 1 << 12
"""Weights of each update that are compared at once: they stay in the processor's cache."""


class Running(Protocol):
    """The running aggregate of an attempt."""

    def begin(self, model: Model | None) -> None:
        """Give the strategies the round's model, and the state behind it. Called once, before the first update."""
        ...

    def add(self, update: Update) -> None:
        """Add an update."""
        ...

    def results(self) -> Iterator[Array]:
        """Return each tensor that is averaged, flat, in the dtype `Spec.result`. Called once, at the end: it uses this up."""
        ...

    def state(self) -> State:
        """Return what the strategies keep for the next round. Called once, after all results."""
        ...


class Folded:
    """A strategy for each tensor. In memory there is what the strategies keep."""

    def __init__(self, layout: Layout, make: Callable[[Spec], Strategy]) -> None:
        self._layout = layout
        self._specs = [spec for spec in layout.tensors if spec.averaged]
        self._strategies = [make(spec) for spec in self._specs]
        self._memory = Memory([spec.name for spec in self._specs])
        self.state = self._memory.state

    def begin(self, model: Model | None) -> None:
        """See `Running.begin`."""
        self._memory.begin(self._strategies, model, seen(self._layout, model))

    def add(self, update: Update) -> None:
        """See `Running.add`."""
        for strategy, blocks in zip(self._strategies, update.tensors(), strict=True):
            strategy.fold(update.samples, blocks)

    def results(self) -> Iterator[Array]:
        """See `Running.results`. The sums of a tensor are gone when the next one is asked for."""
        self._strategies.reverse()
        for spec in self._specs:
            yield self._result(spec, self._strategies.pop())

    def _result(self, spec: Spec, strategy: Strategy) -> Array:
        result = strategy.result()
        self._memory.take(spec.name, strategy)
        return result


class _Updates:
    """Their sample counts and their file. What raises `SpoolFull` leaves those that were added before as they are."""

    def __init__(self, spool: Spool) -> None:
        self.samples: list[int] = []
        self.ends = [0]
        """Of each in the file, in bytes, and where the first begins."""
        self.file = spool.create()
        # An attempt that is given up is just forgotten, and its file with it.
        self.close = weakref.finalize(self, self.file.close)

    def add(self, samples: int, blocks: Iterable[Array]) -> None:
        end = self.file.seek(self.ends[-1])  # over what an update that did not fit has left there
        for block in blocks:
            write(self.file, block.view(np.uint8).data)
            end += block.nbytes
        self.ends.append(end)
        self.samples.append(samples)


class _Tensor(NamedTuple):
    """A tensor in a file of updates."""

    spec: Spec
    dtype: np.dtype[Any]
    """In the file."""
    offset: int
    """Where it begins in an update, in bytes."""


class Collected:
    """All updates, for a strategy that combines them.

    On disk there is every update, bfloat16 as float32; in memory a tensor of the result, and a block of each update.
    """

    def __init__(self, layout: Layout, make: Callable[[Spec], Combining], spool: Spool) -> None:
        self._layout = layout
        self._tensors = list(_tensors(layout))
        self._strategies = [make(tensor.spec) for tensor in self._tensors]
        self._memory = Memory([tensor.spec.name for tensor in self._tensors])
        self.state = self._memory.state
        self._updates = _Updates(spool)

    def begin(self, model: Model | None) -> None:
        """See `Running.begin`."""
        self._memory.begin(self._strategies, model, seen(self._layout, model))

    def add(self, update: Update) -> None:
        """See `Running.add`. Raises `SpoolFull`, and then nothing has happened."""
        tensors = zip(update.tensors(), self._tensors, strict=True)
        self._updates.add(update.samples, (block.astype(t.dtype, copy=False) for blocks, t in tensors for block in blocks))

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Raises `WrongWeights` where the strategy returns something else than a block, or than updates."""
        chosen = self._chosen()
        for tensor, strategy in zip(self._tensors, self._strategies, strict=True):
            result = self._combined(strategy, tensor, chosen)
            self._memory.take(tensor.spec.name, strategy)
            yield result
        self._updates.close()

    def _chosen(self) -> Sequence[int]:
        """Return which updates are combined."""
        everybody = range(len(self._updates.samples))
        strategy: Any = next(iter(self._strategies), None)
        if not hasattr(strategy, "choose"):  # there is none where all tensors are booleans
            return everybody
        chosen: Sequence[int] = [index(one) for one in strategy.choose(self._updates.samples, self._distances())]
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(everybody):
            raise WrongWeights(f"the strategy chose {chosen} of {len(everybody)} updates, which are no positions of some of them")
        return chosen

    def _distances(self) -> Array:
        """Return the L2 distances between the updates. All are read once."""
        everybody, measured = range(len(self._updates.samples)), frozenset(self._layout.measured)
        squares = np.zeros((len(everybody), len(everybody)))
        for tensor in self._tensors:
            if tensor.spec in measured:
                for _, rows in self._blocks(tensor, everybody):
                    _add_squares(squares, rows)
        return np.sqrt(squares + squares.T)

    def _combined(self, strategy: Combining, tensor: _Tensor, chosen: Sequence[int]) -> Array:
        samples = [self._updates.samples[one] for one in chosen]
        result = np.empty(tensor.spec.count, tensor.spec.result)
        for start, rows in self._blocks(tensor, chosen):
            block = result[start : start + rows.shape[1]]
            combined = strategy.combine(samples, rows)
            if np.shape(combined) != block.shape:
                raise WrongWeights(f"the strategy combined updates of {block.size} weights into shape {np.shape(combined)}")
            with np.errstate(over="ignore"):
                block[:] = combined
        return result

    def _blocks(self, tensor: _Tensor, chosen: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """Return blocks of the tensor in these updates, float64 of shape (updates, elements), and where each begins."""
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
            # An update of one array may be of integers, which make a model of float64.
            dtype = np.dtype("<f4") if spec.dtype.name == "bfloat16" else spec.dtype
            yield _Tensor(spec, dtype, offset)
            offset += spec.count * dtype.itemsize


def _add_squares(squares: Array, rows: Array) -> None:
    """Add the square of the distance between rows i and j to `squares[i, j]`, for i < j.

    Of differences, not of products: where one update is very large, products lose the distances between the others.
    """
    for start in range(0, rows.shape[1], COLUMNS):
        part = rows[:, start : start + COLUMNS]
        for number, row in enumerate(part[:-1]):
            difference = part[number + 1 :] - row
            squares[number, number + 1 :] += np.einsum("ij,ij->i", difference, difference)


class CollectedBytes:
    """All updates, for a strategy of a format of its own: the blocks, and the result, are bytes."""

    def __init__(self, strategy: CombiningBytes, spool: Spool) -> None:
        self._strategy = strategy
        self._memory = Memory([""])
        self.state = self._memory.state
        self._updates = _Updates(spool)

    def begin(self, model: Model | None) -> None:
        """See `Running.begin`."""
        self._memory.begin([self._strategy], model, [model and model.tensors[0].data.toreadonly()])

    def add(self, update: Update) -> None:
        """See `Running.add`. Raises `SpoolFull`, and then nothing has happened."""
        self._updates.add(update.samples, (block for blocks in update.tensors() for block in blocks))

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Raises `WrongWeights` where the strategy returns nothing."""
        # The map is not closed: the strategy may have kept a view of it.
        whole = memoryview(mmap.mmap(self._updates.file.fileno(), 0, access=mmap.ACCESS_READ))
        views = [whole[begin:end] for begin, end in pairwise(self._updates.ends)]
        result = np.frombuffer(bytes(self._strategy.combine(self._updates.samples, views)), np.uint8)
        if not result.size:
            raise WrongWeights("the strategy made a model of no bytes")
        self._memory.take("", self._strategy)
        self._updates.close()
        yield result
