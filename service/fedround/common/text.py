"""Text that is safe to show: shortened ids, hidden secrets, escaped characters."""

import re

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ID = re.compile(_UUID, re.IGNORECASE)
_SECRET = re.compile(rf"(?<={_UUID}/){_UUID}|(?<=bearer )[^\s'\"]+|(?<=basic )[^\s'\"]+|(?<=://)[^/@\s]+(?=@)", re.IGNORECASE)


def short(id: str) -> str:
    """Return the first 8 characters of an id. Logs, spans and pages must not show more."""
    return id[:8]


def printable(text: str) -> str:
    r"""Return text with each character that is not printable escaped as in Python: `\x1b`, `\n`, `\u202e`.

    Otherwise text from a peer could begin a new line, move the cursor, change the text direction, or hide itself.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def indented(text: str) -> str:
    """Return a traceback with each line printable and indented, so that no line looks like a log line."""
    return "\n".join(f"  {printable(line)}" for line in text.splitlines())


def redact(text: str) -> str:
    """Return text, such as a library's message, with ids cut to 8 characters, and `***` for tokens and credentials."""
    return _ID.sub(lambda id: short(id[0]), _SECRET.sub("***", text))


def described(error: BaseException) -> str:
    """Return the class and the text of an exception from users' code, whose `__str__` may raise too."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 users' code may raise anything
        text = "<its text is not available>"
    return f"{type(error).__name__}: {text}"
