"""Makes the participant that the settings describe."""

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
FLOWER = "PARTICIPANT_FLOWER (--flower)"
OPTIONS = "PARTICIPANT_OPTIONS (--options)"


def load_participant(name: str, options: Mapping[str, Any]) -> ParticipantABC[Any, Any]:
    """Return an instance of the class `module:Class`. See `find`.

    Raises:
        ConfigurationError: There is no such class, it is no participant, or it takes other arguments than `options`.
        ParticipantError: The module, or the class, raised; from what it raised.
    """
    cls = find(name, CLASS)
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
    except ConfigurationError:
        raise
    except Exception as error:
        raise ParticipantError(f"{name} cannot be made: {described(error)}") from error


def find(what: str, setting: str) -> Any:
    """Return what `module:name` names. The module is looked for in the working directory too.

    Raises:
        ConfigurationError: There is no such module, or it has no such name. The message begins with `setting`.
        ParticipantError: The module raised.
    """
    module, _, name = what.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ConfigurationError:
        raise
    except Exception as error:
        # A module that is missing is a wrong setting; one that is there and fails, by an import of its own say, is shown as it is.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            where = f"neither in {Path.cwd()} nor installed"
            raise ConfigurationError(f"{setting}: there is no module {error.name}, {where}") from error
        raise ParticipantError(f"{module} cannot be imported: {described(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            meant = difflib.get_close_matches(part, dir(found), n=1)
            raise ConfigurationError(f"{setting}: {module} has no {name}" + (f": did you mean {meant[0]}?" if meant else ""))
        found = getattr(found, part)
    return found
