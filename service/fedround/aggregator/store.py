"""The global models that are kept: the newest, and a few before it, with a list that says which there are.

`models.json` is the truth: it names every model with its size and checksum. A model is written before the list names it and removed
when the list has forgotten it: whatever the moment of a crash, each model of the list is whole.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedround import durable
from fedround.aggregator.guards import NOTHING, Figures
from fedround.durable import Disk
from fedround.errors import DataDamaged

LIST = "models.json"
OURS = re.compile(r"round-\d{6,}\.npy")


@dataclass(frozen=True, slots=True)
class Kept:
    """A model on disk: the bytes of an `.npy`."""

    round: int
    size: int
    checksum: str
    samples: int = 0
    change: float = 0.0
    """Both of the lesson of its round; see `guards`."""

    @property
    def name(self) -> str:
        return f"round-{self.round:06d}.npy"


class ModelStore:
    """The models of the last `keep` rounds. Raises `DataDamaged` where its list cannot be read."""

    def __init__(self, disk: Disk, *, keep: int = 10) -> None:
        self._disk = disk
        self._keep = keep
        self._kept = [_kept(entry) for entry in durable.load(disk, LIST) or ()]
        self._sweep()

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds whose models are there, oldest first."""
        return [kept.round for kept in self._kept]

    def read(self, round: int) -> memoryview:
        """The bytes of a model that is kept, writable. Raises `DataDamaged`."""
        kept = next((kept for kept in self._kept if kept.round == round), None)
        if kept is None:
            raise DataDamaged(LIST, f"it has no model of round {round}")
        try:
            data = self._disk.read(kept.name)
        except OSError as error:
            raise DataDamaged(kept.name, f"it cannot be read: {error.strerror}") from error
        if len(data) != kept.size or f"{zlib.crc32(data):08x}" != kept.checksum:
            raise DataDamaged(kept.name, "its size or its checksum is wrong")
        return data

    @property
    def lessons(self) -> Sequence[Figures]:
        """What was learned from the rounds whose models are there, oldest first."""
        return [Figures(kept.samples, kept.change) for kept in self._kept]

    def save(self, round: int, parts: Sequence[bytes | memoryview], lesson: Figures = NOTHING) -> None:
        """Keep the model of a round, which from then on is the newest. Raises `OSError`, and keeps what it had."""
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        new = Kept(round, sum(map(len, parts)), f"{checksum:08x}", lesson.samples, lesson.change)
        durable.replace(self._disk, new.name, parts)
        kept = [*(kept for kept in self._kept if kept.round < round), new][-self._keep :]
        durable.save(self._disk, LIST, [asdict(entry) for entry in kept])
        self._kept = kept
        self._sweep()

    def _sweep(self) -> None:
        """Remove the models that the list does not name; what somebody else has put here is not ours to remove."""
        named = {kept.name for kept in self._kept}
        for name in self._disk.names():
            if OURS.fullmatch(name) and name not in named:
                self._disk.remove(name)


def _kept(entry: Any) -> Kept:
    try:
        return Kept(**entry)
    except TypeError as error:
        raise DataDamaged(LIST, f"it has an entry that is none: {error}") from error
