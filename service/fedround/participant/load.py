"""Makes the participant that `PARTICIPANT_CLASS` and `PARTICIPANT_OPTIONS` describe."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedround.errors import ConfigurationError, ParticipantError
from fedround.participant.abc import ParticipantABC
from fedround.participant.traces import described

CLASS = "PARTICIPANT_CLASS (--class)"
OPTIONS = "PARTICIPANT_OPTIONS (--options)"


def load_participant(name: str, options: Mapping[str, Any]) -> ParticipantABC[Any, Any]:
    """An instance of the class `module:Class`, which is looked for in the working directory too.

    Raises:
        ConfigurationError: There is no such class, it is no participant, or it takes other arguments than `options`.
        ParticipantError: The module, or the class, raised; from what it raised.
    """
    cls = _find(*name.split(":"))
    if not (isinstance(cls, type) and issubclass(cls, ParticipantABC)):
        raise ConfigurationError(f"{CLASS}: {name} is no subclass of fedround.ParticipantABC or fedround.NumPyParticipant")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigurationError(f"{CLASS}: {name} lacks {', '.join(missing)}")
    signature = inspect.signature(cls).replace(return_annotation=inspect.Signature.empty)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigurationError(f"{OPTIONS}: {name} takes other arguments, {signature}: {error}") from error
    try:
        return cls(**options)
    except Exception as error:
        raise ParticipantError(f"{name} cannot be made: {described(error)}") from error


def _find(module: str, name: str) -> object:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module)
    except Exception as error:
        # A module that is missing is a wrong setting; one that is there and fails, by an import of its own say, is shown as it is.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            where = f"neither in {Path.cwd()} nor installed"
            raise ConfigurationError(f"{CLASS}: there is no module {error.name}, {where}") from error
        raise ParticipantError(f"{module} cannot be imported: {described(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            meant = difflib.get_close_matches(part, dir(found), n=1)
            raise ConfigurationError(f"{CLASS}: {module} has no {name}" + (f": did you mean {meant[0]}?" if meant else ""))
        found = getattr(found, part)
    return found
