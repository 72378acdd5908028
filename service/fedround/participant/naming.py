"""The names of participants that were given none: that of the host, with a number where another participant of the host has it."""

import socket
import sys

from fedround.common.settings import ParticipantSettings

MOST = 10_000
_HELD: list[socket.socket] = []
"""Hold the names of this process until it ends, however it does."""


def named(settings: ParticipantSettings) -> ParticipantSettings:
    """Return the settings with a name that no other participant of this host has, unless they say a name."""
    if "name" in settings.model_fields_set or sys.platform != "linux":
        return settings
    names = (settings.name if number == 1 else f"{settings.name[:57]}-{number}" for number in range(1, MOST))
    name = next(filter(_held, names), settings.name)
    return settings.model_copy(update={"name": name})


def _held(name: str) -> bool:
    """Whether this process has the name now. An abstract socket leaves no file behind, and is free when its process has ended."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0fedround/participant/{name}")
    except OSError:
        holder.close()
        return False
    _HELD.append(holder)
    return True
