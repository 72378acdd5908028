"""The tensors that stay in a participant: which ones, where they are kept across restarts, and what a model may do without."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedround.common import durable
from fedround.common.durable import Disk
from fedround.errors import ConfigurationError, WeightsError, WrongWeights
from fedround.participant.abc import NumPyParticipant, ParticipantABC, matches
from fedround.participant.round import local_tensors
from fedround.tensors.safetensors import shown
from fedround.tensors.weights import Array, decode, encode_model

LOG = logging.getLogger(__name__)

FILE = "local.safetensors"
PATTERNS, DIRECTORY = "PARTICIPANT_LOCAL_TENSORS", "PARTICIPANT_DATA_DIR"


@contextmanager
def kept(participant: ParticipantABC[Any, Any], patterns: Sequence[str], directory: Path | None) -> Iterator[None]:
    """Within the block, keep the participant's local tensors in `directory`, and give back those that are there.

    Args:
        participant: Whose they are.
        patterns: Of their names, in place of those of its class; empty: those of its class.
        directory: Held for this process; None: they are kept in memory.

    Raises:
        ConfigurationError: Such a participant has no named tensors, or the directory or its file cannot be used.
        DataDirectoryHeld: Another process uses the directory.
    """
    if not isinstance(participant, NumPyParticipant):
        if patterns:
            raise ConfigurationError(f"{PATTERNS}: {type(participant).__name__} is no fedround.NumPyParticipant")
        yield
        return
    if patterns:
        participant.local_tensors = patterns
    if directory is None or not participant.local_tensors:
        yield
        return
    with durable.held(directory, DIRECTORY) as disk:
        assert disk is not None  # noqa: S101 there is a directory
        participant._begin_with_local(_read(disk))
        participant._keep_local = lambda tensors: _write(disk, tensors)
        yield


def differences(own: Mapping[str, tuple[tuple[int, ...], bool]], given: Mapping[str, Array], whose: str) -> list[str]:
    """Return how tensors differ from those that a library's model has. Local tensors of the running participant may be missing.

    Args:
        own: Of each of the model's tensors the shape, and whether it has floats.
        given: The tensors for it.
        whose: Word for the model, such as "model".
    """
    missing = [name for name in own.keys() - given.keys() if not matches(name, local_tensors())]
    return [
        *(f"{shown(name)} is missing" for name in sorted(missing)),
        *(f"{shown(name)} is not in the {whose}" for name in sorted(given.keys() - own.keys())),
        *(
            f"{shown(name)} has shape {given[name].shape}, the {whose} {shape}"
            for name, (shape, _) in own.items()
            if name in given and given[name].shape != shape
        ),
        *(
            f"{shown(name)} is {given[name].dtype}, but the {whose} has {'floats' if floats else 'integers'} there"
            for name, (_, floats) in own.items()
            if name in given and (given[name].dtype.kind not in "iub") != floats
        ),
    ]


def refuse(differences: Sequence[str], what: str) -> None:
    """Raises `WrongWeights` where there are differences from `what`. The message has the first three."""
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise WrongWeights(f"these are not the tensors of this {what}: {'; '.join(differences[:3])}{more}")


def _read(disk: Disk) -> Mapping[str, Array]:
    try:
        found = decode(disk.read(FILE))
    except FileNotFoundError:
        return {}
    except (OSError, WeightsError) as error:
        raise ConfigurationError(f"{DIRECTORY}: {FILE} cannot be read: {error}; remove it to begin with fresh tensors") from error
    LOG.info("back with %d local tensors", len(found))
    return dict(found) if isinstance(found, Mapping) else {}


def _write(disk: Disk, tensors: Mapping[str, Array]) -> None:
    try:
        durable.replace(disk, FILE, encode_model(tensors))
    except OSError as error:
        LOG.error("the local tensors cannot be kept in %s: %s; a restart would begin with older ones", DIRECTORY, error)
