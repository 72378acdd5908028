"""Requests of a participant to a coordinator, and the error of each bad response, with real sockets."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx
import pytest

from fedround.common.wire import HeartbeatState, Problem, RendezVous, StartTraining
from fedround.errors import BadAnswer, Busy, ConfigurationError, ExchangeError, NotConnected, Refused, Unreachable
from fedround.http import hosts, transport
from fedround.http.client import AggregatorClient, CoordinatorClient
from support.exchanges import ID, STAND_BY, TOKEN, coordinator, download, problem, rendez_vous, upload
from support.peer import Peer, Reply, answer


def test_a_participant_registers_with_its_name_and_token() -> None:
    with Peer(answer("200 OK", RendezVous(ID, 3).encode())) as peer, coordinator(peer, token="secret") as client:
        assert client.rendez_vous("ada", ordinal=2) == RendezVous(ID, 3)
    request = peer.requests[0]
    assert request.line == "GET /rendez_vous HTTP/1.1"
    assert request.headers["fedround-participant"] == "ada"
    assert request.headers["fedround-ordinal"] == "2"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("path", ["/fl", "/fl/"])
def test_the_path_of_the_coordinators_url_is_kept(path: str) -> None:
    with Peer(answer("200 OK", STAND_BY)) as peer, coordinator(peer.url + path) as client:
        client.heartbeat(ID, wait=0)
    assert peer.requests[0].line == f"GET /fl/heartbeat/{ID} HTTP/1.1"


def test_a_heartbeat_requests_its_long_poll_in_whole_seconds() -> None:
    with Peer(*[answer("200 OK", STAND_BY)] * 3) as peer, coordinator(peer) as client:
        for wait in (2.5, 15, 0.0):
            assert client.heartbeat(ID, wait=wait).state is HeartbeatState.STAND_BY
    assert [request.headers["prefer"] for request in peer.requests] == ["wait=3", "wait=15", "wait=0"]


@pytest.mark.parametrize(("wait", "seconds"), [(15, 20), (0, 5)])
def test_a_heartbeat_times_out_five_seconds_after_its_long_poll(wait: float, seconds: float) -> None:
    """One on a connection that has died in silence leaves time for others before the coordinator misses the participant."""
    seen: list[dict[str, Any]] = []

    with Peer(answer("200 OK", STAND_BY)) as peer, coordinator(peer) as client:
        client._http.event_hooks["request"].append(lambda request: seen.append(request.extensions))
        client.heartbeat(ID, wait=wait)
    assert seen[0]["timeout"]["read"] == seconds


def test_a_tracer_surrounds_a_request_adds_headers_and_sees_the_status() -> None:
    seen: list[object] = []

    class Exchange:
        headers: Mapping[str, str] = {"Traceparent": "here"}

        def answered(self, status: int) -> None:
            seen.append(status)

    @contextmanager
    def trace(method: str, url: str, path: str) -> Iterator[Exchange]:
        seen.append((method, url.rpartition("/")[2], path))
        yield Exchange()
        seen.append("ended")

    with Peer(answer("200 OK", STAND_BY)) as peer, coordinator(peer, trace=trace) as client:
        client.heartbeat(ID, wait=0)
    assert seen == [("GET", ID, "/heartbeat/{id}"), 200, "ended"]
    assert peer.requests[0].headers["traceparent"] == "here"


def test_small_requests_share_a_connection() -> None:
    with Peer(*[answer("200 OK", STAND_BY)] * 3) as peer, coordinator(peer) as client:
        for _ in range(3):
            client.heartbeat(ID, wait=0)
    assert len(peer.connections) == 1


def test_start_training_returns_url_and_token() -> None:
    order = StartTraining("http://aggregator:8082", TOKEN)
    with Peer(answer("200 OK", order.encode())) as peer, coordinator(peer) as client:
        assert client.start_training(ID) == order


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (answer("404 Not Found"), Unreachable, "cannot reach its aggregator"),
        (problem("404 Not Found", "no UUID"), Refused, "no UUID"),
    ],
)
def test_404_to_start_training_is_a_refusal_only_with_a_reason(reply: bytes, error: type[ExchangeError], text: str) -> None:
    with Peer(reply) as peer, coordinator(peer) as client, pytest.raises(error, match=text):
        client.start_training(ID)


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "405 Method Not Allowed"])
def test_leaving_succeeds_even_if_the_coordinator_does_not_know_the_route(status: str) -> None:
    with Peer(answer(status)) as peer, coordinator(peer) as client:
        client.leave(ID)
    assert peer.requests[0].line == f"DELETE /rendez_vous/{ID} HTTP/1.1"
    assert peer.requests[0].body == b""


def test_the_reason_for_leaving_is_one_line_without_ids() -> None:
    with Peer(answer("204 No Content")) as peer, coordinator(peer) as client:
        client.leave(ID, f"train failed:\n\tRuntimeError: {ID}\x1b[2J {'x' * 300}")
    request = peer.requests[0]
    assert request.headers["content-type"] == "application/problem+json"
    assert json.loads(request.body) == {
        "title": "Training failed",
        "detail": f"train failed:  RuntimeError: {ID[:8]} [2J {'x' * 300}"[:200],
    }


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("204 No Content", BadAnswer),
        ("302 Found", BadAnswer),
        ("304 Not Modified", BadAnswer),
        ("400 Bad Request", Refused),
        ("401 Unauthorized", Refused),
        ("404 Not Found", Refused),
        ("405 Method Not Allowed", Refused),
        ("429 Too Many Requests", Busy),
        ("500 Internal Server Error", Unreachable),
        ("503 Service Unavailable", Busy),
        ("504 Gateway Timeout", Unreachable),
    ],
)
def test_each_status_has_its_error(status: str, error: type[ExchangeError]) -> None:
    with Peer(answer(status)) as peer, pytest.raises(error, match=rf"^GET {peer.address}/rendez_vous: .*{status[:3]}") as caught:
        rendez_vous(peer)
    assert type(caught.value) is error


def test_a_redirect_is_not_followed() -> None:
    with Peer(answer("301 Moved", Location="/elsewhere"), answer("200 OK", RendezVous(ID).encode())) as peer:
        with pytest.raises(BadAnswer, match="301"):
            rendez_vous(peer)
        assert len(peer.requests) == 1


def test_no_cookie_is_kept_or_sent() -> None:
    """A peer could set ever more of them, until requests are too large for it."""
    setting = answer("200 OK", STAND_BY, Set_Cookie="one=1; Path=/")
    with Peer(setting, setting) as peer, coordinator(peer) as client:
        for _ in range(2):
            client.heartbeat(ID, wait=0)
        assert not client._http.cookies
    assert all("cookie" not in request.headers for request in peer.requests)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7", 7),
        ("Retry-After: 0", 0),
        ("Retry-After: 86400", 86400),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Retry-After: soon", 1),
        ("Retry-After: -3", 1),
        ("Retry-After: ", 1),
        ("X: y", 1),
    ],
)
def test_a_busy_peer_is_asked_again_after_the_seconds_of_retry_after(header: str, seconds: float) -> None:
    reply = f"HTTP/1.1 503 Service Unavailable\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode()
    with Peer(reply) as peer, pytest.raises(Busy) as caught:
        rendez_vous(peer)
    assert caught.value.retry_after == seconds


def test_retry_after_may_be_a_date() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    with Peer(answer("503 Service Unavailable", Retry_After=then)) as peer, pytest.raises(Busy) as caught:
        rendez_vous(peer)
    assert caught.value.retry_after == pytest.approx(3600, abs=100)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"title":"No","detail":"not this round"}', "not this round"),
        (b'{"title":"No"}', "No"),
        (f'{{"detail":"who is {ID}?"}}'.encode(), "who is 3f1c9a52?"),
        (b'{"detail":"%s"}' % (b"a" * 999), "a" * 200),
        (b"[]", ""),
        (b"{", ""),
        (b"[" * 60_000, ""),
        (b"\xff", ""),
    ],
)
def test_a_refusal_has_the_reason_of_the_problem(body: bytes, detail: str) -> None:
    with Peer(answer("409 Conflict", body, Content_Type=Problem.media_type)) as peer, pytest.raises(Refused) as caught:
        rendez_vous(peer)
    assert (caught.value.status, caught.value.detail) == (409, detail)


def test_a_refusal_with_a_truncated_reason_is_a_refusal() -> None:
    cut = b"HTTP/1.1 413 Too Large\r\nContent-Type: application/problem+json\r\nContent-Length: 99\r\n\r\n{"
    with Peer(Reply(cut, close=True)) as peer, pytest.raises(Refused, match="413"):
        rendez_vous(peer)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (answer("200 OK", b"<html>", Content_Type="text/html; charset=utf-8"), "HTML"),
        (answer("200 OK", b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
        (answer("200 OK", b"hello"), "hello"),
        (answer("200 OK", b'{"id":"7","ok":true}'), "not a UUID"),
        (answer("200 OK", b"x" * (transport.MAX_RESPONSE + 1)), "more than"),
    ],
)
def test_a_response_that_is_not_of_the_protocol_is_a_bad_answer(reply: bytes, text: str) -> None:
    with Peer(reply) as peer, pytest.raises(BadAnswer, match=rf"^GET {peer.address}/rendez_vous: .*{text}"):
        rendez_vous(peer)


@pytest.mark.parametrize(
    "reply",
    [b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{", b"HTTP/1.1 200 OK\r\nContent-"],
)
def test_a_response_that_ends_too_early_is_unreachable(reply: bytes) -> None:
    with Peer(Reply(reply, close=True)) as peer, pytest.raises(Unreachable, match=f"^GET {peer.address}/rendez_vous: "):
        rendez_vous(peer)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid", f"http://{'a' * 64}.example", "http://a..b"])
def test_a_peer_that_does_not_exist_is_not_connected(url: str) -> None:
    with pytest.raises(NotConnected, match=f"^GET {url[7:]}/rendez_vous: "):
        rendez_vous(url)


def test_after_a_hang_up_the_update_may_have_arrived() -> None:
    with Peer(Reply(b"", close=True)) as peer, pytest.raises(Unreachable) as caught:
        upload(peer, b"update")
    assert not isinstance(caught.value, NotConnected)


def test_a_peer_without_tls_is_unreachable_by_https() -> None:
    with Peer() as peer, pytest.raises(Unreachable):
        rendez_vous(peer.url.replace("http", "https"))


@pytest.mark.parametrize("url", ["", "http://", "coordinator:8081", "ftp://coordinator", "http://[::1", "http://coordinator:99999"])
def test_an_invalid_coordinator_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://host:port"):
        CoordinatorClient(url)


@pytest.mark.parametrize(
    "url", ["", "http://", "aggregator:8082", "ftp://aggregator", "http://[::1", "http://a\0b", "http://\u2100", "http://a:99999"]
)
@pytest.mark.parametrize("token", [None, "secret"])
def test_an_invalid_aggregator_url_is_a_bad_answer(url: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid")
    with pytest.raises(BadAnswer, match=r"^GET "):
        download(url, token=token, trusted=partial(hosts.trusted, coordinator_url="http://here", allow=["*"]))


@pytest.mark.parametrize("location", ["http://[", "http://\u2100/", "http://a:b/", "//", "gopher://", "x" * 50_000])
def test_a_redirect_to_an_invalid_url_is_an_exchange_error(location: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    with Peer(head) as peer, pytest.raises(ExchangeError, match=rf"^GET {peer.address}/rendez_vous: ") as caught:
        rendez_vous(peer)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("token", ["", "two words", "line\n", "schlüssel"])
def test_a_token_that_no_header_can_hold_is_a_configuration_error(token: str) -> None:
    with pytest.raises(ConfigurationError, match="visible ASCII"):
        AggregatorClient(max_model_size=1, token=token)


def test_every_exception_of_httpx_is_mapped() -> None:
    """This fails when httpx adds an exception: add it to `FOREIGN` if it is the peer's fault, otherwise to `ours`."""
    ours = (httpx.StreamError, httpx.HTTPStatusError)
    bases = {httpx.HTTPError, httpx.RequestError}
    found = {kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {kind for kind in found - bases if not issubclass(kind, (*transport.FOREIGN, *ours))} == set()
    assert set(transport.FOREIGN) - found == {OSError, UnicodeError}
