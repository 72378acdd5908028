"""The global models that are kept: the newest, and a few before it, with a list that says which there are.

`models.json` is the truth: it names every model with its size and checksum, and the state that its strategy keeps beside it, if
there is one. Both are written before the list names them and removed when the list has forgotten them: whatever the moment of a
crash, each model of the list is whole and has its own state. Where models are there and the list is not, nothing is touched.
"""

import errno
import logging
import math
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from fedround.aggregator.guards import NOTHING, Figures
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
"""The newest models, which are kept even where the disk has no room for another."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A model on disk."""

    round: int
    size: int
    checksum: str
    samples: int = 0
    change: float = 0.0
    """Both of the lesson of its round; see `guards`."""
    suffix: str = ".npy"
    run: str = ""
    run_id: str = ""
    """Of the run that it was trained in; empty where that is not known."""
    best: bool = False
    """It is the best of its run, and kept however old it is."""
    state_size: int = 0
    """0: its strategy keeps no state. Then the list says nothing of it, and former versions read the list too."""
    state_checksum: str = ""

    @property
    def name(self) -> str:
        return f"round-{self.round:06d}{self.suffix}"

    @property
    def state(self) -> str:
        return f"round-{self.round:06d}{STATE}"

    @property
    def names(self) -> Sequence[str]:
        """Its files."""
        return [self.name, self.state] if self.state_size else [self.name]

    def entry(self) -> dict[str, Any]:
        """Of the list."""
        fields = asdict(self)
        return fields if self.state_size else {name: fields[name] for name in fields if not name.startswith("state_")}


class ModelStore:
    """The models of the last `keep` rounds. Raises `DataDamaged` where its list cannot be read."""

    def __init__(self, disk: Disk, *, keep: int = 10) -> None:
        self._disk = disk
        self._keep = keep
        document = durable.load(disk, LIST)
        self._listed = document is not None
        if not self._listed:
            durable.check_own(disk, LIST, OURS)
        self.generation, self._kept = _parsed(document) if self._listed else (0, [])
        """How often the newest models were discarded by `roll_back`."""
        self.held: frozenset[int] = frozenset()
        """Rounds whose models are kept for longer, since they may turn out to be the best."""
        self._sweep()

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds whose models are there, oldest first."""
        return [kept.round for kept in self._kept]

    @property
    def lessons(self) -> Sequence[Figures]:
        """What was learned from the rounds whose models are there, oldest first."""
        return [Figures(kept.samples, kept.change) for kept in self._kept]

    @property
    def run(self) -> Run:
        """The run of the newest model."""
        return Run(self._kept[-1].run_id, self._kept[-1].run) if self._kept else NO_RUN

    def read(self, round: int) -> memoryview:
        """The bytes of a model that is kept, writable. Raises `DataDamaged`."""
        kept = self._find(round)
        return self._read(kept.name, kept.size, kept.checksum)

    def read_state(self, round: int) -> memoryview | None:
        """The bytes of the state beside that model; None where there is none. Raises `DataDamaged`."""
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
        if len(data) != size or _checksum([data]) != checksum:
            raise DataDamaged(name, "its size or its checksum is wrong")
        return data

    def save(
        self,
        round: int,
        parts: Sequence[bytes | memoryview],
        lesson: Figures = NOTHING,
        suffix: str = SUFFIXES[0],
        *,
        run: Run = NO_RUN,
        state: Sequence[bytes | memoryview] = (),
    ) -> None:
        """Keep the model of a round, which from then on is the newest, with its state. Raises `OSError`, and keeps what it had.

        On a full disk the oldest models make room.
        """
        new = Kept(round, _size(parts), _checksum(parts), lesson.samples, lesson.change, suffix, run.name, run.id)
        if state:
            new = replace(new, state_size=_size(state), state_checksum=_checksum(state))
        if not self._listed:
            self._write(self._kept)  # before there is a model: else a crash in between would leave one without a list
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
        """The round of the best model of the newest run; None where none is marked."""
        return next((kept.round for kept in self._kept if kept.best and kept.run == self.run.name), None)

    def mark_best(self, round: int) -> None:
        """The model of a round, if it is kept, is the best of its run. Raises `OSError`, and changes nothing."""
        marked = next((kept for kept in self._kept if kept.round == round), None)
        if marked is not None:
            self._write([replace(kept, best=kept.round == round) if kept.run == marked.run else kept for kept in self._kept])

    def roll_back(self, round: int) -> None:
        """Make the model of a round the newest, and remove all later ones. Raises `OSError`, and changes nothing."""
        self._write([kept for kept in self._kept if kept.round <= round], self.generation + 1)

    def _retire(self) -> None:
        oldest = next((kept for kept in self._kept[:-SAFE] if not (kept.best or kept.round in self.held)), self._kept[0])
        rest = [kept for kept in self._kept if kept is not oldest]
        LOG.warning("the disk is full: the model of round %d is removed early", oldest.round)
        try:
            self._write(rest)
        except OSError:
            # No room even for the list. Until it is written it names a model that is gone, but not one of the newest.
            for name in oldest.names:
                self._disk.remove(name)
            self._kept = rest
            self._write(rest)

    def _write(self, kept: list[Kept], generation: int | None = None) -> None:
        """Replace the list, and remove what it does not name any more."""
        generation = self.generation if generation is None else generation
        durable.save(self._disk, LIST, {"generation": generation, "models": [one.entry() for one in kept]})
        self.generation, self._kept, self._listed = generation, kept, True
        self._sweep()

    def _sweep(self) -> None:
        """Remove the models that the list does not name; what somebody else has put here is not ours to remove."""
        named = {name for kept in self._kept for name in kept.names}
        for name in self._disk.names():
            if OURS.fullmatch(name) and name not in named:
                with suppress(OSError):  # the next sweep tries again
                    self._disk.remove(name)


def _size(parts: Sequence[bytes | memoryview]) -> int:
    return sum(map(len, parts))


def _checksum(parts: Sequence[bytes | memoryview]) -> str:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def _parsed(document: Any) -> tuple[int, list[Kept]]:
    if isinstance(document, list):  # of the first versions
        document = {"generation": 0, "models": document}
    match document:
        case {"generation": int(generation), "models": list(models)} if 0 <= generation <= durable.LARGEST:
            kept = [_kept(entry) for entry in models]
            if all(former.round < later.round for former, later in pairwise(kept)):
                return generation, kept
            raise DataDamaged(LIST, "its models are not in the order of their rounds")
    raise DataDamaged(LIST, "it is no list of models")


def _kept(entry: Any) -> Kept:
    try:
        kept = Kept(**entry)
    except TypeError as error:
        raise DataDamaged(LIST, f"it has an entry that is none: {error}") from error
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
        raise DataDamaged(LIST, f"it has an entry whose {name} is none")
    return kept
