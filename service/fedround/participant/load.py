"""Creation of the participant that the settings describe."""

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
        ConfigurationError: The class does not exist, is not a participant, or does not accept `options`.
        ParticipantError: The module or the class raised an exception, which is the cause of this one.
    """
    cls = find(name, CLASS)
    if not (isinstance(cls, type) and issubclass(cls, ParticipantABC)):
        raise ConfigurationError(f"{CLASS}: {name} is not a subclass of fedround.ParticipantABC or fedround.NumPyParticipant")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigurationError(f"{CLASS}: {name} does not implement {', '.join(missing)}")
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
        raise ParticipantError(f"cannot create {name}: {described(error)}") from error


def find(what: str, setting: str) -> Any:
    """Return the object that `module:name` names: see `objects.import_object`.

    Raises:
        ConfigurationError: The module does not exist, or does not have the name.
        ParticipantError: The module raised an exception.
    """
    try:
        return objects.import_object(what, setting)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ParticipantError(f"{what.partition(':')[0]} cannot be imported: {described(error)}") from error
