"""Hostile or broken servers: a participant waits for none of them forever, and allocates no memory for them."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from hostile.arena import Use
from support.federation import ID, OldPlatform, order
from support.peer import Peer, Reply, answer
from support.processes import Process, running, until

REGISTERED = answer("200 OK", f'{{"id":"{ID}","ok":true}}'.encode())
LONG_POLL = 1
"""Maximum seconds of a long poll."""
MARGIN = 5
"""Seconds that a participant waits beyond that."""


def dripping(text: bytes) -> Iterator[bytes]:
    """Yield single bytes with pauses, for half a minute."""
    for byte in itertools.islice(itertools.cycle(text), 300):
        threading.Event().wait(0.1)
        yield bytes([byte])


def endless(piece: bytes, every: float = 0.01) -> Iterator[bytes]:
    for _ in range(3000):
        threading.Event().wait(every)
        yield piece


HEADS: Mapping[str, Callable[[], Iterable[bytes]]] = {
    "a head that drips": lambda: dripping(b"HTTP/1.1 200 OK\r\nX-Header: " + b"a" * 300),
    "headers without an end": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n"], endless(b"X: y\r\n", 0.1)),
    "informational answers without an end": lambda: endless(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 0.1),
    "a body that drips": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"], endless(b" ", 0.1)),
    "chunks without an end": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], endless(b"1\r\n \r\n", 0.1)
    ),
    "silence": lambda: itertools.chain([b""], endless(b"", 0.1)),
}


@contextmanager
def participant(url: str, **settings: str) -> Iterator[Process]:
    common = {
        "PARTICIPANT_COORDINATOR_URL": url,
        "PARTICIPANT_CLASS": "support.known_answer:KnownAnswer",
        "PARTICIPANT_OPTIONS": '{"k": 0, "count": 3}',
        "PARTICIPANT_LONG_POLL": f"{LONG_POLL}s",
        "PARTICIPANT_HEARTBEAT_PERIOD": "0.1s",
        "PARTICIPANT_DRAIN_TIMEOUT": "0.5s",
    }
    with running("participant", **common, **settings) as process:
        yield process


@pytest.mark.parametrize("head", HEADS)
def test_the_response_to_a_heartbeat_has_one_deadline(head: str) -> None:
    with Peer(REGISTERED, *(Reply(HEADS[head](), close=True) for _ in range(5))) as peer, participant(peer.url) as silo:
        until(lambda: len(peer.requests) >= 2)
        until(lambda: silo.probe("/readyz")[0] == 503, LONG_POLL + MARGIN + 5)
        assert silo.probe("/livez")[0] == 200
        until(lambda: len(peer.requests) >= 3, 10)
        assert silo.end() == 0


MODELS = {
    "larger than announced": answer("200 OK", b"x" * 100_000, Content_Length="10"),
    "of a huge size": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
    "of a size that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: 0x10\r\n\r\n",
    "of a gigabyte of zeros, compressed": answer("200 OK", b"\x1f\x8b\x08" + bytes(1000), Content_Encoding="gzip"),
    "a pickle": answer("200 OK", b"\x80\x04]\x94."),
    "shapes": answer(
        "200 OK", b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }   \n"
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_an_invalid_model_takes_no_memory(model: str) -> None:
    with (
        Peer(*[Reply(MODELS[model], close=True)] * 20) as aggregator,
        OldPlatform(heartbeat=[order(0)]) as coordinator,
        participant(coordinator.url, PARTICIPANT_AGGREGATOR_URL=aggregator.url) as silo,
    ):
        before = Use.of(silo)
        until(lambda: silo.ended is not None or len(aggregator.requests) >= 3)
        if silo.ended is None:
            assert Use.of(silo).rss_mb - before.rss_mb < 64
            assert silo.probe("/livez")[0] == 200
            silo.send(signal.SIGTERM)
        assert silo.wait() in (0, 70, 78), "it ended by its rules"
