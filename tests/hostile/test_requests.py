"""Ambiguous and malformed requests: the server responds to each once or cuts the connection, and never with 5xx."""

import re
import socket
from collections.abc import Iterator
from uuid import uuid4

import pytest

from hostile.client import ENEMY, ask
from support.processes import Process, running

PORTS = ["COORDINATOR_PORT", "COORDINATOR_OPS_PORT", "AGGREGATOR_PORT", "AGGREGATOR_OPS_PORT"]
PATHS = [
    "/",
    "/rendez_vous",
    f"/heartbeat/{uuid4()}",
    f"/start_training/{uuid4()}",
    f"/{uuid4()}/{uuid4()}",
    "/status",
    "/metrics",
    "/model",
    "/livez",
    "/events",
]
POST = b"POST /a/b HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /rendez_vous HTTP/1.1\r\nHost: smuggled\r\n\r\n"


@pytest.fixture(scope="module")
def platform() -> Iterator[Process]:
    with running("platform") as platform:
        yield platform


def sent(port: int, data: bytes, *, seconds: float = 3.0) -> list[int]:
    """Send bytes. Return the statuses of all responses, until the server closes or sends nothing more."""
    answers = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds, source_address=(ENEMY, 0)) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answers += piece
        except OSError:  # cut off, or nothing more comes
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answers)]


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "CONNECT", "TRACE", "PATCH", "PUT", "DELETE", "PROPFIND", "M-SEARCH"])
def test_every_method_gets_a_status_below_500(platform: Process, port: str, method: str) -> None:
    for path in PATHS:
        if path != "/events":  # a stream
            target = "here:80" if method == "CONNECT" else path
            statuses = sent(
                int(platform.ports[port]), f"{method} {target} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode()
            )
            assert all(status < 500 for status in statuses), (method, path, statuses)
    assert ask(int(platform.ports[port]), "GET", "/livez").status in (200, 404)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-0",
        "bytes=-1",
        "bytes=5-1",
        "bytes=0-0,1-1,2-2",
        "bytes=99999999999999999999-",
        "lines=1-2",
        "bytes=" + ",".join(["0-1"] * 500),
    ],
)
def test_range_requests_get_a_status_below_500(platform: Process, port: str, value: str) -> None:
    for path in PATHS:
        if path != "/events":
            assert ask(int(platform.ports[port]), "GET", path, headers={"Range": value}).status < 500


SHAPES = {
    "length and chunks": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks, twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding with a tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 0, 44\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a signed length": POST + b"Content-Length: +0\r\n\r\n",
    "a long length": POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    "a length of other digits": POST + "Content-Length: ٣\r\n\r\n".encode() + SMUGGLED,
    "a blank before the colon": POST + b"Content-Length : 44\r\n\r\n",
    "a folded header": POST + b"X: y\r\n Content-Length: 44\r\n\r\n",
    "a chunk with a sign": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk of a huge size": POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n" + SMUGGLED,
    "a NUL in a header": b"GET /rendez_vous HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
    "a bare CR": b"GET /rendez_vous HTTP/1.1\rHost: a\r\r",
    "another protocol": b"GET /rendez_vous HTTP/9.9\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(500),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_ambiguous_request_gets_one_response(platform: Process, port: str, shape: str) -> None:
    joined = platform.status("COORDINATOR_OPS_PORT")["joined"]
    statuses = sent(int(platform.ports[port]), SHAPES[shape] + SMUGGLED)
    assert len(statuses) <= 1
    assert all(status < 500 for status in statuses)
    assert platform.status("COORDINATOR_OPS_PORT")["joined"] == joined, "what was smuggled was done"


def get(target: str, *fields: str) -> bytes:
    """Return the last request of a connection."""
    head = [f"GET {target} HTTP/1.1", "Host: a", *(fields if "Connection" in "".join(fields) else ("Connection: close", *fields))]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


ODD = {
    "an absolute URL": get("http://elsewhere/livez"),
    "an absolute URL of another scheme": get("gopher://elsewhere:99999999/livez"),
    "an asterisk": get("*"),
    "dots": get("/../../etc/passwd"),
    "slashes": get("////////"),
    "bytes beyond ASCII": get("/\xff\xfe%ff%00"),
    "a huge round": get("/model?round=" + "9" * 5000),
    "a negative round": get("/model?round=-1"),
    "a round of other digits": get("/model?round=%D9%A3"),
    "a huge wait": get(f"/heartbeat/{uuid4()}", "Prefer: wait=" + "9" * 400),
    "a huge ordinal": get("/rendez_vous", "Fedround-Participant: a", "Fedround-Ordinal: " + "9" * 400),
    "an old protocol": b"GET /livez HTTP/1.0\r\n\r\n",
    "no protocol": b"GET /livez\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n",
    "an upgrade": get(
        "/livez", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + "A" * 22 + "=="
    ),
    "an upgrade to HTTP/2": get(
        "/livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"
    ),
    "an expectation": POST + b"Connection: close\r\nExpect: 200-ok\r\nContent-Length: 0\r\n\r\n",
    "a long head": get("/livez", *["X: y"] * 20_000),
    "a long line": get("/" + "a" * 200_000),
}


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("shape", ODD)
def test_an_odd_request_gets_a_status_below_500(platform: Process, port: str, shape: str) -> None:
    assert all(status < 500 for status in sent(int(platform.ports[port]), ODD[shape]))
    assert platform.probe("/livez")[0] == 200
