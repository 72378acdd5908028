"""Silos reach the platform by TLS through a proxy, like an Ingress, with certificates of a private CA."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import fedround
from fedround.errors import ConfigurationError
from support import processes
from support.known_answer import KnownAnswer, global_model
from support.processes import ANY_PORT, LOOPBACK, Process, running, until
from support.tools import tool

ROUNDS = 3
EXTENSIONS = ("subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign", "basicConstraints=critical,CA:TRUE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate, and its key."""
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
def behind_tls(port: str, certificate: tuple[str, str], *, mutual: bool) -> Iterator[str]:
    """Run a proxy in front of a local port, and yield its address. `mutual`: it requires a certificate of the same authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate[0])
    context.load_cert_chain(*certificate)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE

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
def silo(platform: Process, certificate: tuple[str, str], *, mutual: bool = False, **settings: str) -> Iterator[Process]:
    with (
        behind_tls(platform.ports["COORDINATOR_PORT"], certificate, mutual=mutual) as coordinator,
        behind_tls(platform.ports["AGGREGATOR_PORT"], certificate, mutual=mutual) as aggregator,
        running(
            "participant",
            PARTICIPANT_COORDINATOR_URL=coordinator,
            PARTICIPANT_AGGREGATOR_URL=aggregator,
            PARTICIPANT_CLASS="support.known_answer:KnownAnswer",
            PARTICIPANT_OPTIONS='{"k": 0, "count": 1}',
            **settings,
        ) as participant,
    ):
        yield participant


@pytest.mark.parametrize("setting", ["PARTICIPANT_TLS_CA_FILE", "SSL_CERT_FILE"])
def test_a_participant_that_trusts_the_authority_trains(
    setting: str, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting, certificate[0])
    with running("platform", COORDINATOR_ROUNDS=str(ROUNDS)) as platform, silo(platform, certificate) as participant:
        assert participant.wait() == 0
        assert global_model(platform) == [float(ROUNDS)]


def test_a_participant_that_does_not_trust_the_authority_is_not_ready(certificate: tuple[str, str]) -> None:
    with running("platform") as platform, silo(platform, certificate) as participant:
        until(lambda: "certificate verify failed" in str(participant.probe("/readyz")[1]["reasons"]))
        assert participant.end() == 0


def test_a_participant_with_a_client_certificate_trains(certificate: tuple[str, str]) -> None:
    own, key = certificate
    with (
        running("platform", COORDINATOR_ROUNDS=str(ROUNDS)) as platform,
        silo(
            platform,
            certificate,
            mutual=True,
            PARTICIPANT_TLS_CA_FILE=own,
            PARTICIPANT_TLS_CERT_FILE=own,
            PARTICIPANT_TLS_KEY_FILE=key,
        ) as participant,
    ):
        assert participant.wait() == 0
        assert global_model(platform) == [float(ROUNDS)]


def test_a_participant_without_a_client_certificate_is_refused(certificate: tuple[str, str]) -> None:
    with (
        running("platform") as platform,
        silo(platform, certificate, mutual=True, PARTICIPANT_TLS_CA_FILE=certificate[0]) as participant,
    ):
        participant.said("no contact with the coordinator")
        assert participant.probe("/readyz")[0] == 503
        assert platform.status("COORDINATOR_OPS_PORT")["participants"] == []
        assert participant.end() == 0


def test_unusable_files_are_configuration_errors_that_name_the_setting(certificate: tuple[str, str], tmp_path: Path) -> None:
    own, key = certificate
    (nothing := tmp_path / "nothing.pem").write_text("")
    locked = str(tmp_path / "locked.pem")
    lock = ("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    subprocess.run([tool("openssl"), *lock], check=True, capture_output=True)
    ca, cert, keys = (f"PARTICIPANT_TLS_{name}_FILE" for name in ("CA", "CERT", "KEY"))
    cases: list[tuple[Any, str]] = [
        ({"tls_ca_file": "/nowhere"}, f"{ca}.*No such file"),
        ({"tls_ca_file": nothing}, f"{ca}.*no certificate"),
        ({"tls_cert_file": "/nowhere", "tls_key_file": key}, f"{cert}.*/nowhere: No such file"),
        ({"tls_cert_file": own, "tls_key_file": "/nowhere"}, f"{keys}.*/nowhere: No such file"),
        ({"tls_cert_file": own}, f"{cert}.*{keys}"),
        ({"tls_cert_file": own, "tls_key_file": nothing}, f"{keys}.*no private key"),
        ({"tls_cert_file": own, "tls_key_file": locked}, f"{keys}.*encrypted; decrypt it: openssl pkey"),
        ({"tls_key_file": key}, f"{cert}.*is not set"),
    ]
    for options, complaint in cases:
        with pytest.raises(ConfigurationError, match=complaint):
            fedround.run_participant(KnownAnswer(0), "https://127.0.0.1:1", **options)


def test_a_missing_authority_exits_with_78() -> None:
    settings = {"COORDINATOR_URL": "https://127.0.0.1:1", "CLASS": "fedround.demo:HousePrices", "TLS_CA_FILE": "/nowhere"}
    environ = LOOPBACK | ANY_PORT | {f"PARTICIPANT_{name}": value for name, value in settings.items()}
    done = processes.fedround("participant", **environ)
    assert done.returncode == 78
    assert "PARTICIPANT_TLS_CA_FILE" in done.stderr
    assert "Traceback" not in done.stderr
