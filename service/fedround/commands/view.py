"""A service's `/status` as lines and tables of text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from fedround.common.text import printable

LAST = 10
"""Maximum number of rounds, and of warnings, to show."""


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each single value, then a table for each list of objects, without the columns that have no value."""
    tables = {
        name: value for name, value in status.items() if isinstance(value, list) and any(isinstance(row, dict) for row in value)
    }
    yield from columns([(name, _text(name, value)) for name, value in status.items() if name not in tables])
    for name, rows in tables.items():
        shown = rows[-LAST:] if name in ("last_rounds", "warnings") else rows
        heads = list(dict.fromkeys(key for row in shown for key in row))
        table = [(head, *(_text(head, row.get(head)) for row in shown)) for head in heads]
        used = [column for column in table if set(column[1:]) != {"-"}] or table[:1]
        yield ""
        yield f"{printable(name)} ({f'the last {len(shown)} of ' if len(shown) < len(rows) else ''}{len(rows)})"
        yield from (f"  {line}" for line in columns(list(zip(*used, strict=True))))


def columns(rows: Sequence[Iterable[str]]) -> Iterator[str]:
    """Yield the rows with aligned columns. Characters that are not printable are escaped."""
    table = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def _text(name: str, value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float() if name in ("time", "started"):
            return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")
        case float():
            return f"{value:.4g}"
        case dict():
            value = " ".join(f"{key}={_text(key, inner)}" for key, inner in value.items())
        case list():
            value = ", ".join(_text("", inner) for inner in value)
    return str(value) or "-"
