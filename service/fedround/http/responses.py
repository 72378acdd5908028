"""Classify an HTTP response: the expected one, or one of our errors. No I/O.

1. 429 and 503 ask the client to retry later. Other 5xx mean that the peer is unavailable.
2. A refusal comes from the peer itself if it has a body of `application/problem+json`, one of our headers, no body at all, or the
   text that 0.8 sends with a 405. A 413 without a body comes from a proxy: 0.8 never sends one.
3. Everything else comes from an intermediary: a proxy, a login page, another service. It says nothing about the request.
"""

import json
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

from fedround.common import wire
from fedround.common.text import redact
from fedround.errors import BadAnswer, Busy, Intercepted, Refused, Unreachable

_OURS = ("fedround-", wire.PREFERENCE_APPLIED.lower())
_NOT_ALLOWED = b"HTTP method not allowed"
"""The body of a 405 response of 0.8."""
TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """The request. `where` is its method, address and path template, for messages. `sent` is the size of its body in bytes."""

    where: str
    url: str
    path: str
    sent: int = 0


def check(request: RequestInfo, status: int, headers: Mapping[str, str], body: bytes, accept: Collection[int]) -> None:
    """Raise the `ExchangeError` that a response stands for. Return if its status is in `accept`.

    Args:
        request: The request.
        status: Status of the response.
        headers: Headers of the response, with names in any case.
        body: Body of a refusal, or `b""` if it could not be read.
        accept: Expected statuses.
    """
    where = request.where
    kind = wire.media_type(headers)
    if status in (429, 503):
        raise Busy(f"{where}: {status}{_page(kind)}", retry_after=_retry_after(headers.get("Retry-After", "")))
    if status >= 500:
        raise Unreachable(f"{where}: {status}{_page(kind)}")
    if status >= 400 and status not in accept:
        if not _is_ours(status, kind, headers, body):
            raise Intercepted(_refusal(status, kind, request.sent))
        raise Refused(status, _detail(kind, body), where)
    if 300 <= status < 400 and "Location" in headers:
        raise Intercepted(f"{status}: {_redirect(request, headers['Location'])}")
    if status not in accept:
        raise BadAnswer(f"an unexpected {status}")
    if status < 300 and kind == "text/html":
        raise Intercepted("an HTML page: is there a login page or a proxy in between?")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise BadAnswer("a compressed response, although the request did not accept one")


def _redirect(request: RequestInfo, location: str) -> str:
    try:
        there = urljoin(request.url, location).partition("?")[0]
    except ValueError:
        return f"redirects to {wire.one_line(redact(location))}, which is not a URL"
    base = there.removesuffix(request.path)
    advice = "" if base == there else f": set the URL to {wire.one_line(redact(base))}"
    return f"redirects to {wire.one_line(redact(there))}; fedround follows no redirects{advice}"


def _is_ours(status: int, kind: str, headers: Mapping[str, str], body: bytes) -> bool:
    if kind == wire.Problem.media_type or any(name.lower().startswith(_OURS) for name in headers):
        return True
    return (not body and status != TOO_LARGE) or (status == 405 and body == _NOT_ALLOWED)


def _refusal(status: int, kind: str, sent: int) -> str:
    if status == TOO_LARGE:
        size = f"{sent / 1e6:.1f} MB" if sent >= 1e5 else f"{sent} bytes"
        return (
            f"a proxy between here and the aggregator refuses bodies of {size} (413 without our header): raise its limit, "
            "nginx `client_max_body_size`"
        )
    return f"{status} without our header ({kind or 'no content type'}): a proxy or another service answers there; is the URL right?"


def _page(kind: str) -> str:
    return ": an HTML page of a proxy that cannot reach the service behind it" if kind == "text/html" else ""


def _retry_after(value: str) -> float:
    seconds = 1.0
    with suppress(ValueError, OverflowError):
        seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    return max(seconds, 0.0)


def _detail(kind: str, body: bytes) -> str:
    if kind == wire.Problem.media_type:
        with suppress(ValueError, AttributeError, RecursionError):
            problem = json.loads(body)
            return wire.one_line(redact(str(problem.get("detail") or problem.get("title") or "")))
    return ""
