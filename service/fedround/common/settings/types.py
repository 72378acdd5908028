"""Types of settings with their own syntax, such as durations and URLs. Each has a parser, and a title for help texts."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from fedround.http.hosts import PATTERN

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
LONGEST = 10**9
"""Maximum duration in seconds, about the limit of system timers."""
LOCAL_SERIES = '{source="local"}'
"""Suffix of a pattern for series of the local model."""


def parse_duration(value: object) -> float:
    """Return the seconds of a duration such as `500ms`, `30s`, `2m`, `1h` or `30`. Raises `ValueError`."""
    match = re.fullmatch(r"(\d+\.?\d*) *(ms|s|m|h|)", str(value).strip())
    seconds = math.inf if match is None else float(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST:
        raise ValueError(f"write a duration as 500ms, 30s, 2m, 1h or in plain seconds, {LONGEST} at most")
    return seconds


def parse_size(value: object) -> int:
    """Return the bytes of a size such as `512MiB`, `1GiB`, `10MB` or `4096`. Raises `ValueError`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d*)?) *([kMGT]|[KMGT]i|)B?", str(value).strip())
    if match is None:
        raise ValueError("write a size as 512MiB, 1GiB, 10MB or in plain bytes")
    return int(float(match[1]) * _BYTES[match[2]])


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        raise ValueError("write a URL as http://host:port or https://host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials do not belong in a URL, which is logged and shown: set the token instead")
    return value.rstrip("/")


def importable(value: str | None, example: str = "MyClass") -> str | None:
    """Return `module:name` unchanged. Raises `ValueError` for another syntax."""
    if value is not None and re.fullmatch(r"[\w.]+:[\w.]+", value) is None:
        raise ValueError(f"write it as my_package.my_module:{example}")
    return value


def _function(value: str | None) -> str | None:
    return importable(value, "my_function")


def reveal(secret: SecretStr | None) -> str | None:
    """Return the secret as plain text."""
    return None if secret is None else secret.get_secret_value()


def _sendable(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("write visible ASCII characters without spaces, because a secret is sent in a header")
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"\*|https?://[a-z0-9.:\[\]-]+", origin) for origin in value):
        raise ValueError("write origins as browsers send them, in lower case and without a path: https://fl.example.org")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _listed(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _label(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[\w.-]{1,63}", value, re.ASCII):
        raise ValueError("write 1 to 63 letters, digits, dots, hyphens and underscores")
    return value


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [each for each in value if not re.fullmatch(r"[\w.:*?-]+", each.removesuffix(LOCAL_SERIES), re.ASCII)]:
        raise ValueError(f"{wrong[0]!r} is not a pattern: write names with * and ?, such as fedround_*,process_*")
    return value


def _hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    hosts = tuple(filter(None, re.split(r"[\s,]+", value.strip().lower())))
    if not all(PATTERN.fullmatch(host) for host in hosts):
        raise ValueError("write host names with commas between them, such as agg.example.org,*.example.net")
    return hosts


def header_fields(text: str) -> Iterator[tuple[str, str]]:
    """Yield the header fields of a list in OpenTelemetry's syntax. Raises `ValueError`."""
    for field in text.split(","):
        name, _, value = field.strip().partition("=")
        value = unquote(value.strip())
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip(), re.ASCII) or not re.fullmatch(r"[ -~]+", value):
            raise ValueError("write header fields as name=value with commas between them, such as Authorization=Bearer%20abc")
        yield name.strip(), value


def _headers(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        tuple(header_fields(value.get_secret_value()))
    return value


App = Annotated[str | None, AfterValidator(importable), Field(title="module:app")]
Function = Annotated[str | None, AfterValidator(_function), Field(title="module:function")]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, title="duration")]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, title="size")]
Url = Annotated[str, AfterValidator(_url), Field(title="url")]
Place = Annotated[Path | None, Field(title="path")]
Number = Annotated[int, Field(title="number", le=2**32)]
Port = Annotated[int, Field(ge=0, le=65535, title="port")]
Origins = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_origins), Field(title="origins")]
Secret = Annotated[SecretStr | None, AfterValidator(_sendable), Field(title="secret")]
HeaderFields = Annotated[SecretStr | None, AfterValidator(_headers), Field(title="secret")]
Label = Annotated[str | None, AfterValidator(_label), Field(title="text")]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_patterns), Field(title="patterns")]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(title="names")]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_hosts), Field(title="hosts")]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower), Field(title="text|json")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower), Field(title="debug|info|warning|error")]
