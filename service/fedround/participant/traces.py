"""Tracebacks of training code: their part for logs, and the release of their objects. This module does not import NumPy."""

import importlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fedround.errors import FedroundError, ParticipantError

MAX_TEXT = 32_000
"""Maximum characters of a traceback between processes. A longer one loses its beginning."""

Traced = tuple[type[BaseException], BaseException, TracebackType | None]

_HERE = Path(__file__).parent
_IMPORTS = ("<frozen importlib", importlib.__file__)
_CALLERS = tuple(str(_HERE / name) for name in ("training.py", "load.py"))
"""Files that call users' code."""
_OURS = (
    *_CALLERS,
    str(_HERE.parent / "common" / "objects.py"),
    str(_HERE / "abc.py"),
    str(_HERE.parent / "tensors"),
)


def traced(error: BaseException | None) -> Traced | None:
    """Return the `exc_info` to log: the traceback from the first line of training code on.

    None if no line of training code raised the error: its result was rejected, or its signature is wrong.
    """
    cause = error.__cause__ if isinstance(error, ParticipantError) else None
    if cause is None:
        return None
    trace = cause.__traceback__
    last = ""
    while trace is not None and (file := trace.tb_frame.f_code.co_filename).startswith((*_OURS, *_IMPORTS)):
        trace, last = trace.tb_next, file
    if trace is None and not isinstance(cause, SyntaxError):
        if isinstance(cause, FedroundError) or last in _CALLERS:
            return None
        trace = cause.__traceback__
    return type(cause), cause, trace


def text_of(error: BaseException) -> str:
    """Return the traceback to log of `error` as text, for another process. Empty if there is none."""
    found = traced(error)
    return "".join(traceback.format_exception(*found))[-MAX_TEXT:].rstrip() if found else ""


def logged(error: BaseException | None) -> Mapping[str, Any]:
    """Return a logger's arguments that log the traceback of `error`, which may come from another process."""
    if isinstance(error, ParticipantError) and error.trace:
        return {"extra": {"traceback": error.trace}}
    found = traced(error)
    return {"exc_info": found} if found else {}


def release(error: BaseException) -> None:
    """Clear the frames of an error's tracebacks, which hold models. Their lines stay."""
    left, seen = [error], set[int]()  # its causes may form a cycle
    while left:
        one = left.pop()
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [other for other in (one.__cause__, one.__context__) if other is not None and id(other) not in seen]
