"""The meaning of responses: fedround's, those of 0.8, and those of a proxy."""

import pytest

from fedround.errors import BadAnswer, Busy, ExchangeError, Intercepted, Refused, Unreachable
from fedround.http.responses import RequestInfo, check

ID = "3f1c9a52-7a84-4a0e-9d4a-1b1f0c8d2e61"
TOKEN = "b7d30e11-52c8-4c7b-8f0d-6a5e4c3b2a19"
HTML = {"Content-Type": "text/html; charset=utf-8"}
PROBLEM = {"Content-Type": "application/problem+json"}
PAGE = b"<html><h1>nginx</h1></html>"
ASKED = RequestInfo("GET fl/x", "http://fl/x", "/x")


def meaning(status: int, headers: dict[str, str], body: bytes = b"", request: RequestInfo = ASKED) -> ExchangeError:
    with pytest.raises(ExchangeError) as caught:
        check(request, status, headers, body, (200,))
    return caught.value


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        # Of fedround and 0.8
        (404, {}, b"", Refused),
        (401, PROBLEM, b'{"title":"Unauthorized"}', Refused),
        (413, PROBLEM, b'{"title":"Too Large"}', Refused),
        (409, {"Fedround-Update": "repeated"}, b"x", Refused),
        (405, {"Content-Type": "text/plain"}, b"HTTP method not allowed", Refused),
        # Of proxies and other services
        (404, {"Content-Type": "text/plain"}, b"404 page not found", Intercepted),
        (404, {"Content-Type": "text/plain"}, b"default backend - 404", Intercepted),
        (403, HTML, PAGE, Intercepted),
        (405, HTML, PAGE, Intercepted),
        (405, {"Content-Type": "application/json"}, b'{"detail":"Method Not Allowed"}', Intercepted),
        (413, HTML, PAGE, Intercepted),
        (413, {"Content-Type": "text/plain"}, b"Payload Too Large", Intercepted),
        (413, {}, b"", Intercepted),
        (200, HTML, b"", Intercepted),
        (302, {"Location": "/login"}, b"", Intercepted),
        (308, HTML | {"location": "https://fl/x"}, PAGE, BadAnswer),
        # Temporary ones
        (502, HTML, PAGE, Unreachable),
        (504, HTML, PAGE, Unreachable),
        (500, {}, b"", Unreachable),
        (503, HTML, PAGE, Busy),
        (429, {}, b"", Busy),
        # Not in any protocol
        (302, {}, b"", BadAnswer),
        (204, {}, b"", BadAnswer),
        (304, {}, b"", BadAnswer),
        (200, {"Content-Encoding": "gzip"}, b"", BadAnswer),
    ],
)
def test_each_response_has_its_error(status: int, headers: dict[str, str], body: bytes, error: type[ExchangeError]) -> None:
    assert type(meaning(status, headers, body)) is error


def test_a_limit_of_a_proxy_is_named_with_the_size_and_the_remedy() -> None:
    asked = RequestInfo("POST fl/{id}/{token}", f"http://fl/{ID}/{TOKEN}", f"/{ID}/{TOKEN}", sent=1_600_128)
    assert str(meaning(413, HTML, PAGE, asked)) == (
        "a proxy between here and the aggregator refuses bodies of 1.6 MB (413 without our header): raise its limit, "
        "nginx `client_max_body_size`"
    )


@pytest.mark.parametrize(
    ("location", "there", "base"),
    [
        ("https://fl.example/rendez_vous", "https://fl.example/rendez_vous", "https://fl.example"),
        ("/fl/rendez_vous", "http://fl/fl/rendez_vous", "http://fl/fl"),
        ("https://login.example/?next=x", "https://login.example/", ""),
    ],
)
def test_the_error_of_a_redirect_names_the_url_to_set(location: str, there: str, base: str) -> None:
    asked = RequestInfo("GET fl/rendez_vous", "http://fl/rendez_vous", "/rendez_vous")
    assert str(meaning(308, {"Location": location}, request=asked)) == (
        f"308: redirects to {there}; fedround follows no redirects" + (f": set the URL to {base}" if base else "")
    )


def test_the_error_of_a_redirect_has_no_ids_tokens_or_control_characters() -> None:
    path = f"/{ID}/{TOKEN}"
    asked = RequestInfo("GET fl/{id}/{token}", f"http://fl{path}", path)
    for location in (f"https://fl{path}", f"https://user:secret@fl/{'x' * 500}{path}\x1b[2J"):
        told = str(meaning(307, {"Location": location}, request=asked))
        assert TOKEN not in told
        assert ID not in told
        assert "secret" not in told
        assert len(told) < 500
        assert told.isprintable()


def test_an_expected_response_passes() -> None:
    check(ASKED, 200, {"Content-Type": "application/json"}, b"", (200,))
    check(ASKED, 404, HTML, PAGE, (200, 404))
