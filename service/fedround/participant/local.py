"""Local tensors: which tensors stay in a participant, how they persist across restarts, and how they may be missing in a model."""

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
def persisted(participant: ParticipantABC[Any, Any], patterns: Sequence[str], directory: Path | None) -> Iterator[None]:
    """Restore the participant's local tensors from `directory`, and persist them there within the block.

    Args:
        participant: The participant with the local tensors.
        patterns: Name patterns that replace those of its class. Empty: those of its class.
        directory: Directory that this process locks. None: the tensors stay in memory.

    Raises:
        ConfigurationError: The participant has no named tensors, or the directory or its file cannot be used.
        DataDirectoryHeld: Another process uses the directory.
    """
    if not isinstance(participant, NumPyParticipant):
        if patterns:
            raise ConfigurationError(f"{PATTERNS}: {type(participant).__name__} is not a fedround.NumPyParticipant")
        yield
        return
    if patterns:
        participant.local_tensors = patterns
    if directory is None or not participant.local_tensors:
        yield
        return
    with durable.locked(directory, DIRECTORY) as disk:
        assert disk is not None  # noqa: S101 there is a directory
        participant._restore_local(_read(disk))
        participant._persist_local = lambda tensors: _write(disk, tensors)
        yield


def differences(own: Mapping[str, tuple[tuple[int, ...], bool]], given: Mapping[str, Array], whose: str) -> list[str]:
    """Return how tensors differ from those of a library's model. Local tensors of the running participant may be missing.

    Args:
        own: Shape of each tensor of the model, and whether it has floats.
        given: Tensors to load into the model.
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
    """Raise `WrongWeights` if there are differences from `what`. The message has the first three."""
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise WrongWeights(f"these are not the tensors of this {what}: {'; '.join(differences[:3])}{more}")


def _read(disk: Disk) -> Mapping[str, Array]:
    try:
        found = decode(disk.read(FILE))
    except FileNotFoundError:
        return {}
    except (OSError, WeightsError) as error:
        raise ConfigurationError(
            f"{DIRECTORY}: {FILE} cannot be read: {error}; delete the file to start with new tensors"
        ) from error
    LOG.info("restored %d local tensors", len(found))
    return dict(found) if isinstance(found, Mapping) else {}


def _write(disk: Disk, tensors: Mapping[str, Array]) -> None:
    try:
        durable.replace(disk, FILE, encode_model(tensors))
    except OSError as error:
        LOG.error("failed to write the local tensors to %s: %s; a restart would restore older ones", DIRECTORY, error)
