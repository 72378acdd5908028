"""The loading of settings from flags, environment variables, secret files and a 0.8 file. The environment is an argument.

A flag takes precedence over a variable, a variable over the 0.8 file, and that file over the default.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from fedround.common.settings import Row, Settings
from fedround.errors import ConfigurationError

_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_")
"""Variables that Kubernetes sets for a Service, such as COORDINATOR_SERVICE_HOST. They are not misspelt settings."""

LONGEST_SECRET = 4096
"""Maximum number of bytes of a file with a secret."""
MOST_SHOWN = 80
"""Maximum number of characters of an invalid value in a message."""

S = TypeVar("S", bound=Settings)


class Line(NamedTuple):
    """An effective setting: its `value` as users write it, with secrets masked, and its `source`."""

    variable: str
    value: str
    source: str


class Loaded(NamedTuple, Generic[S]):
    """Settings, warnings, and the source of each setting."""

    settings: S
    warnings: list[str]
    lines: list[Line]


def load(
    cls: type[S], environ: Mapping[str, str], flags: Mapping[str, str], *, file: Path | None = None, long_flags: bool = False
) -> Loaded[S]:
    """Load the settings of a service.

    Args:
        cls: Class of the settings.
        environ: Environment variables.
        flags: Values of flags as text, by the names of rows.
        file: A configuration file of 0.8.
        long_flags: Whether messages name flags with the service's prefix.

    Raises:
        ConfigurationError: A setting is missing or invalid. The message lists all problems.
    """
    rows = {row.name: row for row in cls.rows()}
    problems: list[str] = []
    values, warnings = ({}, []) if file is None else _read_file(cls, file)
    shown = {name: (str(value), "file") for name, value in values.items()}
    for name, source in {"environment": _from_environment(rows, environ), "flag": dict(flags)}.items():
        shown |= {key: (text, name) for key, text in source.items()}
        for row in rows.values():
            if row.kind != "secret" or f"{row.name}_file" in cls.model_fields:
                continue
            if (path := source.pop(f"{row.name}_file", None)) is not None:
                try:
                    if row.name in source:
                        raise ValueError("the secret itself is set too: set only one of them")
                    source[row.name] = _secret(Path(path))
                    shown[row.name] = ("", name)
                except (OSError, ValueError) as error:
                    problems.append(f"{row.variable}_FILE ({row.flag(long=long_flags)}-file): {error}")
        values |= source
    try:
        settings = cls(**values)
    except ValidationError as error:
        problems += [_problem(cls, rows[str(e["loc"][0])], dict(e), long_flags) for e in error.errors()]
    hints = [*_quoted(rows, environ), *_unknown(f"{cls.prefix}_", environ, {row.variable for row in rows.values()})]
    if problems:
        # List hints too: a misspelt setting often explains a missing one.
        raise ConfigurationError("\n  ".join(["invalid settings:", *problems, *hints]))
    warnings += hints
    return Loaded(
        settings, warnings, [_line(row, settings, *shown.get(row.name, (row.default, "default"))) for row in rows.values()]
    )


def _line(row: Row, settings: Settings, text: str, source: str) -> Line:
    value = getattr(settings, row.name, None)
    if row.kind == "secret":
        text = "***" if value else ""
    elif row.kind == "json":
        text = json.dumps(_masked(value))
    elif not text and value is not None:
        text = str(value)  # computed, such as the host name
    return Line(row.variable, text, source)


def _masked(value: object) -> object:
    """Return options for display, with all strings masked: they may be passwords."""
    match value:
        case str():
            return "***"
        case dict():
            return {name: _masked(inner) for name, inner in value.items()}
        case list():
            return [_masked(inner) for inner in value]
    return value


def _from_environment(rows: Mapping[str, Row], environ: Mapping[str, str]) -> dict[str, str]:
    # Compose passes an unset `${X:-}` as an empty variable. Kubernetes sets COORDINATOR_PORT=tcp://... for a Service.
    found = ((name, environ.get(row.variable, "").strip()) for name, row in rows.items())
    return {name: value for name, value in found if value and not value.startswith("tcp://")}


def _quoted(rows: Mapping[str, Row], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield warnings about variables in quotation marks: not everything that reads a `.env` file removes them."""
    for row in rows.values():
        if re.fullmatch(r"(['\"]).*\1", environ.get(row.variable, "").strip(), re.DOTALL):
            yield f"{row.variable}: the quotation marks are part of the value; remove them if that is not intended"


def _secret(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LONGEST_SECRET + 1)
    if len(content) > LONGEST_SECRET:
        raise ValueError(f"the file has more than {LONGEST_SECRET} bytes")
    return content.decode().strip()


def _unknown(prefix: str, environ: Mapping[str, str], known: set[str]) -> Iterator[str]:
    ours = {name.removeprefix(prefix): name for name in known if name.startswith(prefix)}
    for name in sorted(environ):
        if name.startswith(prefix) and name not in known and not _SERVICE_LINK.search(name):
            nearest = difflib.get_close_matches(name.removeprefix(prefix), ours, n=1)
            yield f"{name} is not a setting" + (f": did you mean {ours[nearest[0]]}?" if nearest else "")


def _problem(cls: type[Settings], row: Row, error: Mapping[str, Any], long_flags: bool) -> str:
    field = cls.model_fields[row.name]
    message = f"{row.variable} ({row.flag(long=long_flags)}): "
    if error["type"] == "missing":
        return f"{message}is not set. {field.description}"
    # Repeat only numbers and keywords: texts, URLs and JSON may contain secrets.
    text = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    secret = row.kind == "secret" or field.annotation in (str, str | None, dict[str, Any])
    return message + text + ("" if secret else f", not {_short(error['input'])}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _read_file(cls: type[Settings], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a 0.8 configuration file, and warnings."""
    try:
        keys = dict(_flatten(tomllib.loads(path.read_text())))
    except RecursionError:
        raise ConfigurationError(f"the file {path} cannot be read: its tables are nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the file {path} cannot be read: {error}") from error
    values, warnings = {}, []
    if "strategy" in cls.model_fields and {"aggregation.python.module", "aggregation.python.class"} <= keys.keys():
        module, name = str(keys.pop("aggregation.python.module")), str(keys.pop("aggregation.python.class"))
        strategy = module.rpartition(".")[2]
        values["strategy"] = strategy if strategy in ("weighted_average", "model_sum") else f"{module}:{name}"
    for key, value in keys.items():
        if key == "api.bind_address":
            host, _, port = str(value).rpartition(":")
            values |= {"bind": host.strip("[]"), "port": port}
        elif key in cls.file_keys:
            values[cls.file_keys[key]] = value
        elif key.partition(".")[0] in ("rpc", "metric_store", "logging", "log_level"):
            warnings.append(f"{path}: {key} has no effect")
        else:
            warnings.append(f"{path}: {key} is not a setting")
    return values, warnings


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
