import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from io import FileIO
from pathlib import Path

import pytest

from fedround.aggregator.spool import IN_MEMORY, Received, Spool
from fedround.errors import ConfigurationError, SpoolFull, TooLarge, TooSlow

Chunks = AsyncIterator[bytes]


async def chunks_of(*chunks: bytes) -> Chunks:
    for chunk in chunks:
        yield chunk


async def hanging_after(*chunks: bytes) -> Chunks:
    for chunk in chunks:
        yield chunk
    await asyncio.Future()


async def failing_after(*chunks: bytes) -> Chunks:
    for chunk in chunks:
        yield chunk
    raise ConnectionResetError


def receive(spool: Spool, chunks: Chunks, length: int | None = None) -> Received:
    return asyncio.run(spool.receive(chunks, length))


def content(received: Received) -> bytes:
    if isinstance(received.source, FileIO):
        received.source.seek(0)
        with received.source as file:
            return file.read()
    return bytes(received.source)


def test_a_small_body_stays_in_memory(tmp_path: Path) -> None:
    for body in (b"", b"some bytes", bytes(IN_MEMORY)):
        received = receive(Spool(tmp_path / "not there", max_size=IN_MEMORY), chunks_of(body[:3], body[3:]))
        assert isinstance(received.source, bytearray)
        assert (content(received), received.size) == (body, len(body))


@pytest.mark.parametrize("chunk", [1000, 100_000, 5_000_000])
def test_a_large_body_goes_to_an_unnamed_file(tmp_path: Path, chunk: int) -> None:
    body = b"0123456" * 500_000
    chunks = chunks_of(*(body[start : start + chunk] for start in range(0, len(body), chunk)))
    received = receive(Spool(tmp_path, max_size=len(body)), chunks)
    assert isinstance(received.source, FileIO)
    assert list(tmp_path.iterdir()) == []
    assert received.size == len(body)
    assert content(received) == body


def test_a_body_that_is_announced_as_too_large_is_not_read() -> None:
    with pytest.raises(TooLarge, match=r"more than 10 bytes \(AGGREGATOR_MAX_MODEL_SIZE\)"):
        receive(Spool(None, max_size=10), failing_after(), length=11)


@pytest.mark.parametrize("chunk", [1000, 100_000])
def test_a_body_that_becomes_too_large_is_refused_immediately(chunk: int) -> None:
    size = chunk * 50
    with pytest.raises(TooLarge):
        receive(Spool(None, max_size=size - 1), hanging_after(*[bytes(chunk)] * 50))


@pytest.mark.parametrize("before", [0, 1000, 2 * IN_MEMORY])
def test_a_body_that_stalls_is_too_slow(before: int) -> None:
    spool = Spool(None, max_size=1 << 30, window=0.05)
    with pytest.raises(TooSlow, match=r"less than 10000 bytes per second over 0.05 s"):
        receive(spool, hanging_after(bytes(before)))


def test_a_body_below_the_minimum_rate_is_too_slow() -> None:
    async def trickle() -> Chunks:
        while True:
            yield b"x"
            await asyncio.sleep(0.001)

    with pytest.raises(TooSlow):
        receive(Spool(None, max_size=1 << 30, window=0.1), trickle())


def test_a_body_at_the_minimum_rate_may_last_longer_than_the_window() -> None:
    async def steady() -> Chunks:
        for _ in range(6):
            yield bytes(1000)
            await asyncio.sleep(0.1)

    assert receive(Spool(None, max_size=1 << 30, min_rate=1000, window=0.4), steady()).size == 6000


def test_an_error_while_reading_is_raised_unchanged_and_no_file_remains(tmp_path: Path) -> None:
    for before in (0, 2 * IN_MEMORY):
        with pytest.raises(ConnectionResetError):
            receive(Spool(tmp_path, max_size=1 << 30), failing_after(bytes(before)))
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_create_files_refuses_large_bodies(tmp_path: Path) -> None:
    with pytest.raises(SpoolFull, match="No such file or directory"):
        receive(Spool(tmp_path / "gone", max_size=1 << 30), chunks_of(bytes(2 * IN_MEMORY)))


@pytest.fixture
def files_of_3_mib_at_most() -> Iterator[None]:
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.usefixtures("files_of_3_mib_at_most")
def test_a_spool_that_becomes_full_during_an_upload_raises(tmp_path: Path) -> None:
    with pytest.raises(SpoolFull, match="File too large"):
        receive(Spool(tmp_path, max_size=1 << 30), chunks_of(*[bytes(100_000)] * 50))
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_spool_directory_is_a_configuration_error(tmp_path: Path) -> None:
    Spool(tmp_path, max_size=1).check()
    with pytest.raises(ConfigurationError, match="AGGREGATOR_SPOOL_DIR: cannot create a file there"):
        Spool(tmp_path / "gone", max_size=1).check()
