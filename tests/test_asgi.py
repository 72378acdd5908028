import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.common import wire
from fedround.errors import Busy, FedroundError, Late, NotAdmitted, SpoolFull, TooLarge, TooSlow, UnknownAttempt, WrongWeights
from fedround.events import Fact, Observer, RequestServed
from fedround.http import asgi
from fedround.http.asgi import Slices
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import Tokens
from support.sockets import connected

Handler = Callable[[Request], Awaitable[Response]]


async def show(request: Request) -> Response:
    return Response(request.url.path)


def ask(
    handler: Handler,
    path: str = "/a",
    *,
    token: str | None = None,
    origins: Sequence[str] = (),
    method: str = "GET",
    observe: Observer | None = None,
    **headers: str,
) -> httpx.Response:
    async def main() -> httpx.Response:
        routes = [Route("/a", handler, methods=["GET", "POST"])]
        app = asgi.application(routes, tokens=Tokens(token), origins=origins, observe=observe)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.request(method, path, headers={name.encode(): value.encode() for name, value in headers.items()})

    return asyncio.run(main())


def test_a_trailing_slash_is_accepted_without_a_redirect() -> None:
    answer = ask(show, "/a/?b=c")
    assert (answer.status_code, answer.text) == (200, "/a")


PAGE = "https://x.example"


@pytest.mark.parametrize("path", ["/a", "/nowhere"])
@pytest.mark.parametrize("origins", [["*"], ["https://y.example", PAGE]])
def test_a_page_of_an_allowed_origin_may_read_the_response(path: str, origins: Sequence[str]) -> None:
    answer = ask(show, path, origins=origins, Origin=PAGE)
    assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (PAGE, "Origin")


@pytest.mark.parametrize("origin", [None, PAGE, "https://x.example.org", "null", "*"])
@pytest.mark.parametrize("origins", [[], ["https://y.example"]])
def test_a_page_of_another_origin_may_not_read_the_response(origins: Sequence[str], origin: str | None) -> None:
    answer = ask(show, origins=origins) if origin is None else ask(show, origins=origins, Origin=origin)
    assert {"access-control-allow-origin", "vary"}.isdisjoint(answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "title"), [("GET", "/b", 404, "Not Found"), ("PUT", "/a", 405, "Method Not Allowed")]
)
def test_an_unknown_route_is_a_problem(method: str, path: str, status: int, title: str) -> None:
    answer = ask(show, path, method=method)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json() == {"title": title, "status": status}


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (NotAdmitted("why"), 404, {}),
        (Late("why"), 409, {}),
        (UnknownAttempt("why"), 409, {}),
        (TooSlow("why"), 408, {}),
        (TooLarge("why"), 413, {}),
        (WrongWeights("why"), 422, {}),
        (SpoolFull("why"), 503, {"retry-after": "5"}),
        (Busy("why", retry_after=1.5), 503, {"retry-after": "1.5"}),
    ],
)
def test_our_errors_are_problems_with_a_reason(error: FedroundError, status: int, headers: Mapping[str, str]) -> None:
    async def fail(request: Request) -> Response:
        raise error

    answer = ask(fail)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "why" in answer.json()["detail"]
    assert headers.items() <= answer.headers.items()


def test_an_unexpected_error_is_not_hidden() -> None:
    async def fail(request: Request) -> Response:
        raise FedroundError("a fault of ours")

    with pytest.raises(FedroundError, match="a fault of ours"):
        ask(fail)


@pytest.mark.parametrize(
    ("method", "path", "served"),
    [
        ("POST", "/a", ("POST", "/a", 200)),
        ("HEAD", "/a", ("HEAD", "/a", 200)),
        ("PUT", "/a", ("_OTHER", "/a", 405)),
        ("BREW", "/a", ("_OTHER", "/a", 405)),
        ("GET", "/b", ("_OTHER", "", 404)),
    ],
)
def test_observers_see_only_methods_that_a_route_has(method: str, path: str, served: tuple[str, str, int]) -> None:
    facts: list[Fact] = []
    ask(show, path, method=method, observe=facts.append)
    (fact,) = facts
    assert isinstance(fact, RequestServed)
    assert (fact.method, fact.route, fact.status) == served


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "Basic c2VjcmV0", "secret", "Bearer sécret"])
def test_an_app_with_a_token_requires_it(given: str) -> None:
    answer = ask(show, token="secret", Authorization=given)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize("given", ["Bearer secret", "bearer  secret "])
def test_an_app_with_a_token_accepts_it(given: str) -> None:
    assert ask(show, token="secret", Authorization=given).status_code == 200


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (b"me:secret", True),
        (b":secret", True),
        (b"secret", False),
        (b"secret:me", False),
        (b"\xff:secret", False),
    ],
)
def test_a_page_accepts_the_token_as_a_password(given: bytes, right: bool) -> None:
    async def page(request: Request) -> Response:
        allowed = asgi.bearer(request.headers, Tokens("secret"), basic=True) is not None
        return Response("here") if allowed else asgi.unauthorized(request.headers, basic=True)

    answer = ask(page, Authorization="Basic " + base64.b64encode(given).decode())
    assert answer.status_code == (200 if right else 401)
    assert right or answer.headers["www-authenticate"].startswith("Basic ")
    assert ask(page, Authorization="Basic !").status_code == 401
    assert ask(page, Authorization="Bearer secret").status_code == 200


def test_slices_are_the_buffers_with_their_exact_length() -> None:
    data = bytes(range(256)) * 5000

    async def model(request: Request) -> Response:
        return Slices([b"head", memoryview(data)], headers={"ETag": '"1"'}, media_type="application/octet-stream")

    answer = ask(model)
    assert answer.content == b"head" + data
    assert (answer.headers["content-length"], answer.headers["etag"]) == (str(len(data) + 4), '"1"')
    head = ask(model, method="HEAD")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(data) + 4))


async def refuse(request: Request) -> Response:
    return asgi.problem(409, "too late for this")


def refusing() -> Endpoint:
    app = asgi.application([Route("/", refuse, methods=["POST"])])
    return Endpoint(app, host="127.0.0.1", port=0, setting="PORT")


async def test_a_client_that_reads_only_after_writing_gets_its_refusal() -> None:
    served, body = refusing(), bytes(5 << 20)
    async with serving(served), connected(served.port) as connection:
        for _ in range(2):  # on the same connection
            await connection.ask("POST", "/", Content_Length=str(len(body)))
            await connection.send(body)
            answer = await connection.answer()
            assert answer.status == 409
            assert json.loads(answer.body)["detail"] == "too late for this"
            assert "connection" not in answer.headers


async def test_a_refused_body_is_read_only_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DRAIN_BYTES", 1 << 20)
    served = refusing()
    async with serving(served), connected(served.port) as connection:
        await connection.ask("POST", "/", Content_Length=str(1 << 40))
        await connection.send(bytes(1 << 20))
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (409, "close")
        assert await connection.at_end()


async def test_a_refused_client_that_sends_nothing_does_not_hold_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DRAIN_SECONDS", 0.05)
    served = refusing()
    async with serving(served), connected(served.port) as connection:
        await connection.ask("POST", "/", Content_Length="10")
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (409, "close")
        assert await connection.at_end()


async def test_a_client_that_expects_100_continue_is_refused_before_it_sends() -> None:
    served = refusing()
    async with serving(served), connected(served.port) as connection:
        async with asyncio.timeout(wire.DRAIN_SECONDS / 2):
            await connection.ask("POST", "/", Content_Length="10", Expect="100-continue")
            answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (409, "close")
