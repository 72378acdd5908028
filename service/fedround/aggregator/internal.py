"""The books over HTTP: the app of the internal port, with calls and answers as JSON. `http/remote_books.py` is the other end."""

import json
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fedround.common.books import (
    Admission,
    Admit,
    Answer,
    Books,
    Call,
    Close,
    Closed,
    Difference,
    Open,
    Revoke,
    Run,
    Verdict,
    admissions_from_json,
    carry_out,
    page_to_json,
)
from fedround.common.wire import media_type
from fedround.events import Observer
from fedround.http import asgi
from fedround.http.tokens import NO_TOKENS, TokenCheck

MAX_CALL = 64 << 20
"""Maximum bytes of a call, which may list every participant."""


def internal(
    books: Books, *, tokens: TokenCheck = NO_TOKENS, observe: Observer | None = None, trace: asgi.Trace | None = None
) -> ASGIApp:
    """Return the app of the internal port. It refuses web pages: their requests have an `Origin`, or a type other than JSON.

    Args:
        books: The books of the aggregator.
        tokens: The check of the internal secret.
        observe: Receives facts about requests.
        trace: Opens the span of a request.
    """

    async def call(request: Request) -> Response:
        if "origin" in request.headers:
            return asgi.problem(403, "web pages have no access to the books")
        if media_type(request.headers) != "application/json":
            return asgi.problem(415, "the content type must be application/json")
        body = await asgi.read_body(request, MAX_CALL)
        try:
            call = _CALLS[request.path_params["operation"]](json.loads(body))
        except (KeyError, TypeError, ValueError, RecursionError):
            return asgi.problem(400, "this is not a call of the books")
        return _answer(_answer_to_json(await carry_out(books, call)))

    async def ledger(request: Request) -> Response:
        if "origin" in request.headers:
            return asgi.problem(403, "web pages have no access to the books")
        after = request.query_params.get("after", "0")
        if not asgi.is_number(after):
            return asgi.problem(400, "`after` is the number of an entry")
        best = request.query_params.get("best", "")
        best_round = int(best) if asgi.is_number(best) else None
        return _answer(page_to_json(await books.ledger(request.query_params.get("incarnation", ""), int(after), best_round)))

    routes = [Route("/books/ledger", ledger), Route("/books/{operation}", call, methods=["POST"])]
    return asgi.application(routes, tokens=tokens, needs="internal secret (FEDROUND_INTERNAL_SECRET)", observe=observe, trace=trace)


_CALLS: Mapping[str, Callable[[Any], Call]] = {
    "open": lambda data: Open(
        _text(data["attempt"]),
        _number(data["round"]),
        _admissions(data["admissions"]),
        tuple(map(_text, data["forget"])),
        Run(*map(_text, data.get("run", ()))),
        data.get("train", True) is not False,
    ),
    "admit": lambda data: Admit(_text(data["attempt"]), _admissions(data["admissions"])),
    "revoke": lambda data: Revoke(_text(data["attempt"]), _text(data["id"]), _seconds(data.get("patience", 0.0))),
    "close": lambda data: Close(_text(data["attempt"]), tuple(map(_text, data["ids"]))),
}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise ValueError
    return float(value)


def _admissions(data: Any) -> tuple[Admission, ...]:
    admissions = tuple(admissions_from_json(data))
    for admission in admissions:
        for value in astuple(admission):
            _text(value)
    return admissions


def _answer_to_json(answer: Answer) -> dict[str, object]:
    match answer:
        case None:
            return {}
        case Verdict():
            return {"verdict": answer}
        case Closed(parameters):
            return {"closed": {"parameters": parameters}}
        case Difference(missing, surplus):
            return {"difference": {"missing": sorted(missing), "surplus": sorted(surplus)}}


def _answer(data: Mapping[str, object]) -> Response:
    return Response(json.dumps(data, separators=(",", ":")), media_type="application/json")
