"""Make text safe to show: ids cut, secrets hidden, and characters of peers escaped."""

import re

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ID = re.compile(_UUID, re.IGNORECASE)
_SECRET = re.compile(rf"(?<={_UUID}/){_UUID}|(?<=bearer )[^\s'\"]+|(?<=basic )[^\s'\"]+|(?<=://)[^/@\s]+(?=@)", re.IGNORECASE)


def short(id: str) -> str:
    """The first 8 characters of an id: all that logs, spans and pages may show."""
    return id[:8]


def printable(text: str) -> str:
    r"""Escape each character that is not printable, as Python writes it: `\x1b`, `\n`, `\u202e`.

    So what a peer sends cannot begin a line, move a cursor, turn the direction of what follows, or hide.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def indented(text: str) -> str:
    """A traceback as it is shown: line by line, each one printable, and none that looks like the beginning of a log line."""
    return "\n".join(f"  {printable(line)}" for line in text.splitlines())


def redact(text: str) -> str:
    """For texts that others make of our URLs and headers: ids are cut to 8 characters, tokens and credentials are `***`."""
    return _ID.sub(lambda id: short(id[0]), _SECRET.sub("***", text))


def described(error: BaseException) -> str:
    """Return the class and the text of what users' code raised, whose `__str__` may raise too."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 anything, like the code that raised
        text = "its text cannot be made"
    return f"{type(error).__name__}: {text}"
