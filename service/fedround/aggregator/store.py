"""The model store: the newest global models, and their list `models.json`.

The list has each model, and the state of its strategy if there is one, with sizes and checksums. The store writes files before it
lists them, and removes files after it has removed them from the list. So after a crash at any moment, each listed model is complete
and has its state. If there are models without a list, the store changes nothing and raises `DataDamaged`.
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

from fedround.aggregator.guards import NO_BASELINE, Size
from fedround.common import durable
from fedround.common.books import NO_RUN, Run
from fedround.common.durable import Disk
from fedround.errors import DataDamaged

LOG = logging.getLogger(__name__)

LIST = "models.json"
SUFFIXES = ".npy", ".safetensors", ".bin"
STATE = ".state.safetensors"
FILES = re.compile(r"round-\d{6,}(\.npy|(\.state)?\.safetensors|\.bin)")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk."""
ALWAYS_KEPT = 2
"""Number of newest models that stay even on a full disk."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on disk."""

    round: int
    size: int
    checksum: str
    samples: int = 0
    change: float = 0.0
    """The samples and the change are the baseline of its round: see `guards.py`."""
    suffix: str = ".npy"
    run: str = ""
    run_id: str = ""
    """Name and id of the run that trained it; empty: unknown."""
    best: bool = False
    """Whether it is the best of its run. If so, it stays regardless of its age."""
    state_size: int = 0
    """Size of the state in bytes; 0: there is no state. Then the list omits the fields of the state for former versions."""
    state_checksum: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"round-{self.round:06d}{self.suffix}"

    @property
    def state(self) -> str:
        """The name of the file of its state."""
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
    """The stored models.

    Args:
        disk: The data directory.
        keep: Number of newest models to keep.

    Raises:
        DataDamaged: The list cannot be read, or is missing although there are models.
    """

    def __init__(self, disk: Disk, *, keep: int = 10) -> None:
        self._disk = disk
        self._keep = keep
        document = durable.load(disk, LIST)
        self._listed = document is not None
        if not self._listed:
            durable.check_new(disk, LIST, FILES)
        self.generation, self._models = _parsed(document) if self._listed else (0, [])
        """Number of rollbacks."""
        self.protected: frozenset[int] = frozenset()
        """Rounds whose models stay regardless of their age, because they may be the best."""
        self._sweep()

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds whose models are stored, oldest first."""
        return [model.round for model in self._models]

    @property
    def baselines(self) -> Sequence[Size]:
        """The baselines of the rounds whose models are stored, oldest first."""
        return [Size(model.samples, model.change) for model in self._models]

    @property
    def run(self) -> Run:
        """The run of the newest model."""
        return Run(self._models[-1].run_id, self._models[-1].run) if self._models else NO_RUN

    def read(self, round: int) -> memoryview:
        """Return the bytes of a stored model, writable. Raises `DataDamaged`."""
        model = self._find(round)
        return self._read(model.name, model.size, model.checksum)

    def read_state(self, round: int) -> memoryview | None:
        """Return the bytes of the model's state; None if there is none. Raises `DataDamaged`."""
        model = self._find(round)
        return self._read(model.state, model.state_size, model.state_checksum) if model.state_size else None

    def _find(self, round: int) -> StoredModel:
        model = next((model for model in self._models if model.round == round), None)
        if model is None:
            raise DataDamaged(LIST, f"it has no model of round {round}")
        return model

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
        baseline: Size = NO_BASELINE,
        suffix: str = SUFFIXES[0],
        *,
        run: Run = NO_RUN,
        state: Sequence[bytes | memoryview] = (),
    ) -> None:
        """Store the model of a round, and make it the newest. On a full disk, remove the oldest models.

        Args:
            round: The round.
            parts: The content of the model's file.
            baseline: The guard's baseline of the round.
            suffix: The suffix of the file.
            run: The run that trained the model.
            state: The content of the file with the strategy's state; empty: there is none.

        Raises:
            OSError: The model was not stored, and the earlier ones remain.
        """
        new = StoredModel(round, _size(parts), durable.checksum(parts), baseline.samples, baseline.change, suffix, run.name, run.id)
        if state:
            new = replace(new, state_size=_size(state), state_checksum=durable.checksum(state))
        if not self._listed:
            self._write(self._models)  # write the list first: a crash must not leave a model without a list
        while True:
            try:
                if state:
                    durable.replace(self._disk, new.state, state)
                durable.replace(self._disk, new.name, parts)
                models = [*(model for model in self._models if model.round < round), new]
                newest = models[-self._keep :]
                self._write([model for model in models if model.best or model.round in self.protected or model in newest])
                return
            except OSError as error:
                if error.errno not in FULL or len(self._models) <= ALWAYS_KEPT:
                    raise
                self._retire()

    @property
    def best(self) -> int | None:
        """The round of the best model of the newest run; None if none is marked."""
        return next((model.round for model in self._models if model.best and model.run == self.run.name), None)

    def mark_best(self, round: int) -> None:
        """Mark the model of a round, if it is stored, as the best of its run. Raises `OSError`, and then changes nothing."""
        best = next((model for model in self._models if model.round == round), None)
        if best is not None:
            self._write([replace(model, best=model is best) if model.run == best.run else model for model in self._models])

    def roll_back(self, round: int) -> None:
        """Make the model of a round the newest, and remove all later ones. Raises `OSError`, and then changes nothing."""
        self._write([model for model in self._models if model.round <= round], self.generation + 1)

    def _retire(self) -> None:
        """Remove the oldest model, because the disk is full."""
        removable = (model for model in self._models[:-ALWAYS_KEPT] if not (model.best or model.round in self.protected))
        oldest = next(removable, self._models[0])
        rest = [model for model in self._models if model is not oldest]
        LOG.warning("the disk is full: removed the model of round %d early", oldest.round)
        try:
            self._write(rest)
        except OSError:
            # There is no room even for the list, so remove the files first. A crash now leaves a list with a missing old model.
            for name in oldest.names:
                self._disk.remove(name)
            self._models = rest
            self._write(rest)

    def _write(self, models: list[StoredModel], generation: int | None = None) -> None:
        """Replace the list, and remove the files of models that it no longer has."""
        generation = self.generation if generation is None else generation
        durable.save(self._disk, LIST, {"generation": generation, "models": [model.entry() for model in models]})
        self.generation, self._models, self._listed = generation, models, True
        self._sweep()

    def _sweep(self) -> None:
        """Remove the files of models that the list does not have, but no other files."""
        listed = {name for model in self._models for name in model.names}
        for name in self._disk.names():
            if FILES.fullmatch(name) and name not in listed:
                with suppress(OSError):  # the next sweep tries again
                    self._disk.remove(name)


def _size(parts: Sequence[bytes | memoryview]) -> int:
    return sum(map(len, parts))


def _parsed(document: Any) -> tuple[int, list[StoredModel]]:
    if isinstance(document, list):  # of the first versions
        document = {"generation": 0, "models": document}
    match document:
        case {"generation": int(generation), "models": list(models)} if 0 <= generation <= durable.LARGEST:
            stored = [_stored_model(entry) for entry in models]
            if all(former.round < later.round for former, later in pairwise(stored)):
                return generation, stored
            raise DataDamaged(LIST, "its models are not in the order of their rounds")
    raise DataDamaged(LIST, "it is not a list of models")


def _stored_model(entry: Any) -> StoredModel:
    try:
        model = StoredModel(**entry)
    except TypeError as error:
        raise DataDamaged(LIST, f"it has an invalid entry: {error}") from error
    for name, value in asdict(model).items():
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
    return model
