"""Silos that reach the platform by TLS through a proxy, as through an Ingress, with a certificate of a house's own authority."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from support.known_answer import global_model
from support.processes import Process, running, until
from support.tools import tool

ROUNDS = 3
EXTENSIONS = ("subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign", "basicConstraints=critical,CA:TRUE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate that is its own authority, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    files = str(directory / "certificate.pem"), str(directory / "key.pem")
    extensions = [argument for extension in EXTENSIONS for argument in ("-addext", extension)]
    make = (
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=fedround",
        "-out",
        files[0],
        "-keyout",
        files[1],
    )
    subprocess.run([tool("openssl"), *make, *extensions], check=True, capture_output=True)
    return files


@contextmanager
def behind_tls(port: str, certificate: tuple[str, str]) -> Iterator[str]:
    """The address of a proxy in front of a port of this machine."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(1 << 16):
                target.write(piece)
                await target.drain()
        target.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection("127.0.0.1", int(port))
        await asyncio.gather(pump(reader, server[1]), pump(server[0], writer))

    async def serve() -> None:
        server, stop = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context), asyncio.Event()
        serving.set_result((server.sockets[0].getsockname()[1], partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)))
        await stop.wait()
        server.close()

    serving: Future[tuple[int, Callable[[], object]]] = Future()
    thread = Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    number, stop = serving.result()
    try:
        yield f"https://127.0.0.1:{number}"
    finally:
        stop()
        thread.join()


@contextmanager
def silo(platform: Process, certificate: tuple[str, str], **settings: str) -> Iterator[Process]:
    with (
        behind_tls(platform.ports["COORDINATOR_PORT"], certificate) as coordinator,
        behind_tls(platform.ports["AGGREGATOR_PORT"], certificate) as aggregator,
        running(
            "participant",
            PARTICIPANT_COORDINATOR_URL=coordinator,
            PARTICIPANT_AGGREGATOR_URL=aggregator,
            PARTICIPANT_CLASS="support.known_answer:KnownAnswer",
            PARTICIPANT_OPTIONS='{"k": 0, "count": 1}',
            PYTHONPATH=str(Path(__file__).parent),
            **settings,
        ) as participant,
    ):
        yield participant


def test_who_trusts_the_authority_takes_part(certificate: tuple[str, str]) -> None:
    with (
        running("platform", COORDINATOR_ROUNDS=str(ROUNDS)) as platform,
        silo(platform, certificate, SSL_CERT_FILE=certificate[0]) as participant,
    ):
        assert participant.wait() == 0
        assert global_model(platform) == [float(ROUNDS)]


def test_who_does_not_is_not_ready_and_says_why(certificate: tuple[str, str]) -> None:
    with running("platform") as platform, silo(platform, certificate) as participant:
        until(lambda: "certificate verify failed" in str(participant.probe("/readyz")[1]["reasons"]))
        assert participant.end() == 0
