"""The model store: the newest global model and a few before it, and their list `models.json`.

The list names every model, and its strategy's state if there is one, with size and checksum. The store writes both files before
the list names them, and removes them after the list has dropped them. So after a crash at any moment, each listed model is complete
and has its state. If there are models but no list, the store changes nothing.
"""

import errno
import logging
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from fedround.aggregator.guards import NOTHING, Size
from fedround.common import durable
from fedround.common.books import NO_RUN, Run
from fedround.common.durable import Disk
from fedround.errors import DataDamaged

LOG = logging.getLogger(__name__)

LIST = "models.json"
SUFFIXES = ".npy", ".safetensors", ".bin"
STATE = ".state.safetensors"
OURS = re.compile(r"round-\d{6,}(\.npy|(\.state)?\.safetensors|\.bin)")
FULL = (errno.ENOSPC, errno.EDQUOT)
SAFE = 2
"""Number of newest models that the store keeps even on a full disk."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A model on disk."""

    round: int
    size: int
    checksum: str
    samples: int = 0
    change: float = 0.0
    """Samples and change are the lesson of its round: see `guards`."""
    suffix: str = ".npy"
    run: str = ""
    run_id: str = ""
    """Name and id of the run that trained it; empty if unknown."""
    best: bool = False
    """Whether it is the best of its run. If so, it is kept regardless of its age."""
    state_size: int = 0
    """0: there is no state. The list then omits the fields of the state, so that former versions can read it."""
    state_checksum: str = ""

    @property
    def name(self) -> str:
        return f"round-{self.round:06d}{self.suffix}"

    @property
    def state(self) -> str:
        return f"round-{self.round:06d}{STATE}"

    @property
    def names(self) -> Sequence[str]:
        """The names of its files."""
        return [self.name, self.state] if self.state_size else [self.name]

    def entry(self) -> dict[str, Any]:
        """Return its entry in the list."""
        fields = asdict(self)
        return fields if self.state_size else {name: fields[name] for name in fields if not name.startswith("state_")}


class ModelStore:
    """The models of the last `keep` rounds. Raises `DataDamaged` if the list cannot be read."""

    def __init__(self, disk: Disk, *, keep: int = 10) -> None:
        self._disk = disk
        self._keep = keep
        document = durable.load(disk, LIST)
        self._listed = document is not None
        if not self._listed:
            durable.check_new(disk, LIST, OURS)
        self.generation, self._kept = _parsed(document) if self._listed else (0, [])
        """Number of rollbacks."""
        self.held: frozenset[int] = frozenset()
        """Rounds whose models are kept longer, as they may turn out to be the best."""
        self._sweep()

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds whose models are stored, oldest first."""
        return [kept.round for kept in self._kept]

    @property
    def lessons(self) -> Sequence[Size]:
        """The lessons of the rounds whose models are stored, oldest first."""
        return [Size(kept.samples, kept.change) for kept in self._kept]

    @property
    def run(self) -> Run:
        """The run of the newest model."""
        return Run(self._kept[-1].run_id, self._kept[-1].run) if self._kept else NO_RUN

    def read(self, round: int) -> memoryview:
        """Return the bytes of a stored model, writable. Raises `DataDamaged`."""
        kept = self._find(round)
        return self._read(kept.name, kept.size, kept.checksum)

    def read_state(self, round: int) -> memoryview | None:
        """Return the bytes of the model's state; None if there is none. Raises `DataDamaged`."""
        kept = self._find(round)
        return self._read(kept.state, kept.state_size, kept.state_checksum) if kept.state_size else None

    def _find(self, round: int) -> Kept:
        kept = next((kept for kept in self._kept if kept.round == round), None)
        if kept is None:
            raise DataDamaged(LIST, f"it has no model of round {round}")
        return kept

    def _read(self, name: str, size: int, checksum: str) -> memoryview:
        try:
            data = self._disk.read(name)
        except OSError as error:
            raise DataDamaged(name, f"it cannot be read: {error.strerror}") from error
        if len(data) != size or durable.checksum([data]) != checksum:
            raise DataDamaged(name, "its size or its checksum is wrong")
        return data

    def save(
        self,
        round: int,
        parts: Sequence[bytes | memoryview],
        lesson: Size = NOTHING,
        suffix: str = SUFFIXES[0],
        *,
        run: Run = NO_RUN,
        state: Sequence[bytes | memoryview] = (),
    ) -> None:
        """Store the model of a round with its state, and make it the newest. Raises `OSError`, and then keeps the former models.

        On a full disk, it removes the oldest models.
        """
        new = Kept(round, _size(parts), durable.checksum(parts), lesson.samples, lesson.change, suffix, run.name, run.id)
        if state:
            new = replace(new, state_size=_size(state), state_checksum=durable.checksum(state))
        if not self._listed:
            self._write(self._kept)  # write the list first: a crash must not leave a model without a list
        while True:
            try:
                if state:
                    durable.replace(self._disk, new.state, state)
                durable.replace(self._disk, new.name, parts)
                kept = [*(kept for kept in self._kept if kept.round < round), new]
                self._write([one for one in kept if one.best or one.round in self.held or one in kept[-self._keep :]])
                return
            except OSError as error:
                if error.errno not in FULL or len(self._kept) <= SAFE:
                    raise
                self._retire()

    @property
    def best(self) -> int | None:
        """The round of the best model of the newest run; None if none is marked."""
        return next((kept.round for kept in self._kept if kept.best and kept.run == self.run.name), None)

    def mark_best(self, round: int) -> None:
        """Mark the model of a round, if it is stored, as the best of its run. Raises `OSError`, and then changes nothing."""
        marked = next((kept for kept in self._kept if kept.round == round), None)
        if marked is not None:
            self._write([replace(kept, best=kept.round == round) if kept.run == marked.run else kept for kept in self._kept])

    def roll_back(self, round: int) -> None:
        """Make the model of a round the newest, and remove all later ones. Raises `OSError`, and then changes nothing."""
        self._write([kept for kept in self._kept if kept.round <= round], self.generation + 1)

    def _retire(self) -> None:
        oldest = next((kept for kept in self._kept[:-SAFE] if not (kept.best or kept.round in self.held)), self._kept[0])
        rest = [kept for kept in self._kept if kept is not oldest]
        LOG.warning("the disk is full: removed the model of round %d early", oldest.round)
        try:
            self._write(rest)
        except OSError:
            # There is no room even for the list. Until it is written, it names a removed model, but not one of the newest.
            for name in oldest.names:
                self._disk.remove(name)
            self._kept = rest
            self._write(rest)

    def _write(self, kept: list[Kept], generation: int | None = None) -> None:
        """Replace the list, and remove the files that it no longer names."""
        generation = self.generation if generation is None else generation
        durable.save(self._disk, LIST, {"generation": generation, "models": [one.entry() for one in kept]})
        self.generation, self._kept, self._listed = generation, kept, True
        self._sweep()

    def _sweep(self) -> None:
        """Remove the models that the list does not name, but no other files."""
        named = {name for kept in self._kept for name in kept.names}
        for name in self._disk.names():
            if OURS.fullmatch(name) and name not in named:
                with suppress(OSError):  # the next sweep tries again
                    self._disk.remove(name)


def _size(parts: Sequence[bytes | memoryview]) -> int:
    return sum(map(len, parts))


def _parsed(document: Any) -> tuple[int, list[Kept]]:
    if isinstance(document, list):  # of the first versions
        document = {"generation": 0, "models": document}
    match document:
        case {"generation": int(generation), "models": list(models)} if 0 <= generation <= durable.LARGEST:
            kept = [_kept(entry) for entry in models]
            if all(former.round < later.round for former, later in pairwise(kept)):
                return generation, kept
            raise DataDamaged(LIST, "its models are not in the order of their rounds")
    raise DataDamaged(LIST, "it is not a list of models")


def _kept(entry: Any) -> Kept:
    try:
        kept = Kept(**entry)
    except TypeError as error:
        raise DataDamaged(LIST, f"it has an invalid entry: {error}") from error
    for name, value in asdict(kept).items():
        match name, value:
            case "best", bool():
                continue
            case (("checksum" | "run" | "run_id" | "state_checksum"), str()):
                continue
            case "suffix", str() if value in SUFFIXES:
                continue
            case "change", int() | float() if 0 <= value < math.inf:
                continue
            case (("round" | "size" | "samples" | "state_size"), int()) if 0 <= value <= durable.LARGEST:
                continue
        raise DataDamaged(LIST, f"it has an entry with an invalid {name}")
    return kept
