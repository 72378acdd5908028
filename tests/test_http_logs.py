"""Requests in logs and facts: none has an id or a token."""

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedround.common.text import redact
from fedround.errors import FedroundError, Refused
from fedround.events import ExchangeEnded, Fact
from fedround.http import http_log
from support.exchanges import ID, STAND_BY, TOKEN, aggregator, coordinator
from support.peer import Peer, answer


def seen_by_observers(call: Any, *arguments: Any) -> ExchangeEnded:
    """Return the only event of an exchange, successful or not."""
    facts: list[Fact] = []
    with aggregator(observe=facts.append) as client, suppress(FedroundError):
        getattr(client, call)(*arguments)
    (fact,) = facts
    assert isinstance(fact, ExchangeEnded)
    return fact


def test_observers_see_each_exchange_with_its_status_error_and_sizes() -> None:
    with Peer(answer("200 OK", b"model"), answer("404 Not Found")) as peer:
        fact = seen_by_observers("download", peer.url, ID, TOKEN)
        assert 0 < fact.seconds < 10
        assert fact == ExchangeEnded("GET", "/{id}/{token}", 200, None, fact.seconds, sent=0, received=5)
        fact = seen_by_observers("upload", peer.url, ID, TOKEN, [b"update", b"s"])
        assert (fact.method, fact.status, fact.error, fact.sent) == ("POST", 404, "Refused", 7)
    fact = seen_by_observers("download", "http://127.0.0.1:1", ID, TOKEN)
    assert (fact.status, fact.error) == (None, "ConnectError")


def exercise(url: str) -> None:
    """Requests of every kind, with ids and tokens in paths, headers and reasons."""
    with coordinator(url, token="geheim") as client:
        client.heartbeat(ID, wait=1)
    with aggregator(token="geheim") as client, pytest.raises(Refused):
        client.upload(url, ID, TOKEN, [b"update"])


REPLIES = answer("200 OK", STAND_BY), answer("404 Not Found", Location=f"/{ID}/{TOKEN}")


def assert_no_secrets(text: str) -> None:
    assert ID[:8] in text
    for secret in (ID, TOKEN, TOKEN[9:], "geheim", "Z2VoZWlt"):
        assert secret not in text


def test_no_log_line_of_a_library_has_an_id_or_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(*REPLIES) as peer:
        exercise(peer.url)
    assert {"httpx", "httpcore.connection", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert_no_secrets(caplog.text)


def test_no_log_line_about_a_proxy_has_an_id_or_token(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(*REPLIES) as peer:
        monkeypatch.setenv("HTTP_PROXY", f"http://ada:geheim@{peer.address}")
        exercise("http://platform.invalid")
    assert peer.requests[0].line == f"GET http://platform.invalid/heartbeat/{ID} HTTP/1.1"
    assert_no_secrets(caplog.text)


def test_every_logger_of_httpx_and_httpcore_is_filtered() -> None:
    import httpcore

    sources = [source.read_text() for package in (httpx, httpcore) for source in Path(package.__path__[0]).rglob("*.py")]
    assert {name for source in sources for name in re.findall(r'getLogger\("(.*?)"\)', source)} == set(http_log.FOREIGN)


def test_no_error_has_an_id_or_token() -> None:
    with Peer(*REPLIES) as peer, aggregator() as client:
        client.download(peer.url, ID, TOKEN)
        with pytest.raises(Refused) as caught:
            client.download(peer.url, ID, TOKEN)
    assert str(caught.value) == f"GET {peer.address}/{{id}}/{{token}}: refused with 404"


@pytest.fixture
def request_log() -> Iterator[None]:
    http_log.log_requests(True)
    yield
    http_log.log_requests(False)


@pytest.mark.usefixtures("request_log")
def test_requests_are_logged_in_the_format_of_xain_sdk(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "xain-sdk.http")
    with Peer(*REPLIES) as peer:
        exercise(peer.url)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "xain-sdk.http"]
    heartbeat, update = f"{peer.url}/heartbeat/{ID[:8]}", f"{peer.url}/{ID[:8]}/***"
    for line in [
        ("INFO", f">>> GET {heartbeat}"),
        ("DEBUG", "prefer: wait=1"),
        ("DEBUG", "authorization: Bearer ***"),
        ("INFO", f"<<< GET {heartbeat} [200]"),
        ("INFO", f">>> POST {update}"),
        ("WARNING", f"<<< POST {update} [404]"),
    ]:
        assert line in lines
    assert_no_secrets(caplog.text)


def test_requests_are_not_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Peer(*REPLIES) as peer:
        exercise(peer.url)
    assert ">>>" not in caplog.text


def test_redaction_hides_ids_tokens_and_passwords_only() -> None:
    assert redact("GET http://ada:pw@h/x?a=1 'Bearer t0ken'") == "GET http://***@h/x?a=1 'Bearer ***'"
    assert redact(f"/{ID.upper()}/{TOKEN.upper()}/x") == f"/{ID[:8].upper()}/***/x"
