"""The interface of a command, and the exit codes. Each has one meaning."""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

Arguments = Mapping[str, Any]
Run = Callable[[Arguments], int]
"""A function that runs a command and returns the exit code."""


class Exit(IntEnum):
    """Exit codes, with the numbers of <sysexits.h>."""

    OK = 0
    FAILED = 1
    USAGE = 64
    UNREACHABLE = 69
    USER_CODE = 70
    HELD = 75
    CONFIGURATION = 78
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "Success: training completed, or the process stopped on request.",
    Exit.FAILED: "A command other than a service failed: it got no answer or a refusal, or could not write a file.",
    Exit.USAGE: "The command line is invalid.",
    Exit.UNREACHABLE: "The coordinator was unreachable for longer than `PARTICIPANT_GIVE_UP_AFTER`.",
    Exit.USER_CODE: "The participant's code failed, `PARTICIPANT_MAX_FAILURES` times in a row. The log has its traceback.",
    Exit.HELD: "Another process uses the data directory. Start this one again after the other one has ended.",
    Exit.CONFIGURATION: (
        "A setting is missing or invalid, a port is in use, or a file in the data directory is damaged. "
        "The last lines of the log name each problem."
    ),
    Exit.INTERRUPTED: "Ctrl-C ended a command other than a service.",
}
