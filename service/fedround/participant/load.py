"""Makes the participant that the settings describe."""

import inspect
from collections.abc import Mapping
from typing import Any

from fedround.common import objects
from fedround.common.text import described
from fedround.errors import ConfigurationError, ParticipantError
from fedround.participant.abc import ParticipantABC

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
    """Return what `module:name` names: see `objects.find`.

    Raises:
        ConfigurationError: There is no such module, or it has no such name.
        ParticipantError: The module raised.
    """
    try:
        return objects.find(what, setting)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ParticipantError(f"{what.partition(':')[0]} cannot be imported: {described(error)}") from error
