"""Default names of participants: the host name, with a number if another participant on the host already has it."""

import socket
import sys

from fedround.common.settings import ParticipantSettings

MAX_NUMBER = 10_000
_RESERVED: list[socket.socket] = []
"""Sockets that reserve this process's names until it ends, even by a crash."""


def named(settings: ParticipantSettings) -> ParticipantSettings:
    """Return the settings with a name that is unique on this host, unless they set one."""
    if "name" in settings.model_fields_set or sys.platform != "linux":
        return settings
    names = (settings.name if number == 1 else f"{settings.name[:57]}-{number}" for number in range(1, MAX_NUMBER))
    name = next(filter(_reserve, names), settings.name)
    return settings.model_copy(update={"name": name})


def _reserve(name: str) -> bool:
    """Reserve the name, and return whether that worked. An abstract socket has no file, and is free when its process ends."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0fedround/participant/{name}")
    except OSError:
        holder.close()
        return False
    _RESERVED.append(holder)
    return True
