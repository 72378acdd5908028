"""TLS as a server of ours speaks it: one app, real sockets, both kinds of event loop."""

import asyncio
import gc
import logging
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.errors import ConfigurationError
from fedround.events import ConnectionsChanged
from fedround.http import asgi, serve, tls
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import Tokens
from support.certificates import Authority, Pair
from support.sockets import Answer, connected
from support.tools import tool

Run = Callable[[Coroutine[Any, Any, None]], None]
BIG = os.urandom(3_000_000)


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)

    return on_uvloop if request.param == "uvloop" else asyncio.run


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.server("serving")


def served(pair: Pair, client_ca: str | None = None, *, needed: bool = True, tokens: Tokens | None = None) -> Endpoint:
    async def owner(request: Request) -> Response:
        return Response(f"{request.state.owner} {request.url.scheme}")

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def big(request: Request) -> Response:
        return asgi.Slices([BIG], headers={}, media_type="application/octet-stream")

    routes = [Route("/", owner), Route("/echo", echo, methods=["POST"]), Route("/big", big)]
    app = asgi.application(routes, tokens=tokens or Tokens())
    context = tls.server("A", pair.cert, pair.key, client_ca, required=needed, names_clients=True)
    return Endpoint(app, host="127.0.0.1", port=0, setting="A_PORT", tls=context)


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


async def ask(port: int, context: ssl.SSLContext | None, path: str = "/", **headers: str) -> Answer:
    async with connected(port, context) as connection:
        await connection.ask("GET", path, **headers)
        return await connection.answer()


def test_large_bodies_arrive_whole_in_both_directions(run: Run, authority: Authority, pair: Pair) -> None:
    async def main() -> None:
        endpoint = served(pair)
        async with serving(endpoint), connected(endpoint.port, trusting(authority)) as connection:
            await connection.ask("GET", "/big")
            assert (await connection.answer()).body == BIG
            await connection.ask("POST", "/echo", Content_Length=str(len(BIG)))
            await connection.send(BIG)
            assert (await connection.answer()).body == BIG
            await connection.ask("GET", "/")
            assert (await connection.answer()).body == b" https"

    run(main())


def test_a_connection_that_is_over_leaves_nothing_to_the_garbage_collector(run: Run, authority: Authority, pair: Pair) -> None:
    async def main() -> None:
        endpoint, over = served(pair), asyncio.Event()
        endpoint.observe = lambda fact: over.set() if fact == ConnectionsChanged("public", 0) else None
        async with serving(endpoint):
            await ask(endpoint.port, trusting(authority))
            await over.wait()
            over.clear()
            gc.disable()
            try:
                await ask(endpoint.port, trusting(authority))
                await over.wait()
                await asyncio.sleep(0.1)
                assert not [found for found in gc.get_objects() if type(found).__name__ == "_Protocol"]
            finally:
                gc.enable()

    gc.collect()
    run(main())


def test_below_tls_1_2_nobody_is_served(run: Run, authority: Authority, pair: Pair) -> None:
    async def main() -> None:
        endpoint, old = served(pair), trusting(authority)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.deprecated_call():
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        async with serving(endpoint):
            with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL"):
                await ask(endpoint.port, old)

    run(main())


def test_plain_http_on_a_port_with_tls_is_answered_with_what_to_do(run: Run, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        endpoint = served(pair)
        async with serving(endpoint):
            for _ in range(3):
                answer = await ask(endpoint.port, None)
                assert answer.status == 400
                assert b"this port speaks TLS: use https://" in answer.body

    run(main())
    assert [record.message for record in caplog.records] == ["A_PORT: refused a connection: a client does not speak TLS"]


def test_tls_on_a_plain_port_is_answered_with_what_to_do(run: Run, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        endpoint = Endpoint(asgi.application([]), host="127.0.0.1", port=0, setting="A_PORT")
        async with serving(endpoint):
            for _ in range(3):
                with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
                    await ask(endpoint.port, trusting(authority))

    run(main())
    assert [record.message for record in caplog.records] == [
        "A_PORT: refused a connection: a client speaks TLS, and this port does not"
    ]


@pytest.mark.parametrize(
    ("asked", "shown", "common", "expected"),
    [
        ([], "silo-1", None, "silo-1"),
        (["DNS:silo-2", "DNS:other"], "two", None, "silo-2"),
        (["DNS:*.example.org", "DNS:silo-3.example.org"], "three", None, "silo-3.example.org"),
        (["IP:127.0.0.1", "URI:spiffe://here/silo"], "four", "silo-4", "silo-4"),
    ],
)
def test_the_name_in_the_certificate_is_the_owner(
    run: Run, authority: Authority, pair: Pair, asked: list[str], shown: str, common: str | None, expected: str
) -> None:
    async def main() -> None:
        endpoint, own = served(pair, authority.file), authority.issue(shown, *asked, common=common)
        async with serving(endpoint):
            assert (await ask(endpoint.port, trusting(authority, own))).body.decode() == f"{expected} https"

    run(main())


def test_a_certificate_without_the_name_of_a_participant_is_refused_with_403(run: Run, authority: Authority, pair: Pair) -> None:
    async def main() -> None:
        endpoint, own = served(pair, authority.file), authority.issue("nameless", common="Silo 1, Hospital")
        async with serving(endpoint):
            answer = await ask(endpoint.port, trusting(authority, own))
            assert answer.status == 403
            assert b"names no participant" in answer.body

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_shows_no_certificate_or_a_foreign_one_is_told_by_an_alert(
    run: Run, authority: Authority, pair: Pair, tmp_path: Path, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("silo-1")

    async def main() -> None:
        endpoint = served(pair, authority.file)
        async with serving(endpoint):
            for own, alert in ((None, "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"), (stranger, "UNKNOWN_CA")):
                context = trusting(authority, own)
                context.maximum_version = version
                with pytest.raises(ssl.SSLError, match=f"ALERT_({alert})"):
                    await ask(endpoint.port, context)

    run(main())
    assert [record.message for record in caplog.records] == [
        "A_PORT: refused a connection: TLS handshake failed: peer did not return a certificate",
        "A_PORT: refused a connection: TLS handshake failed: unable to get local issuer certificate",
    ]


def test_with_a_file_of_tokens_either_proves_a_name_and_both_must_agree(
    run: Run, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    (file := tmp_path / "tokens").write_text("silo-1 one\nsilo-2 two\n")

    async def main() -> None:
        endpoint = served(pair, authority.file, needed=False, tokens=Tokens("shared", file))
        own, none = trusting(authority, authority.issue("silo-1")), trusting(authority)
        cases: list[tuple[ssl.SSLContext, dict[str, str], int, str]] = [
            (own, {}, 200, "silo-1 https"),
            (own, {"Authorization": "Bearer one"}, 200, "silo-1 https"),
            (own, {"Authorization": "Bearer shared"}, 200, "silo-1 https"),
            (own, {"Authorization": "Bearer two"}, 403, "belong to two participants"),
            (own, {"Authorization": "Bearer three"}, 401, "unknown token"),
            (none, {"Authorization": "Bearer two"}, 200, "silo-2 https"),
            (none, {"Authorization": "Bearer shared"}, 401, "this port requires a client certificate"),
            (none, {"Authorization": "Bearer three"}, 401, "this port requires a client certificate"),
            (none, {}, 401, "this port requires a client certificate"),
        ]
        async with serving(endpoint):
            for context, headers, status, text in cases:
                answer = await ask(endpoint.port, context, **headers)
                assert (answer.status, text in answer.body.decode()) == (status, True), (headers, answer)

    run(main())


def test_new_files_hold_for_new_connections_and_open_ones_end_with_their_next_answer(
    run: Run, authority: Authority, pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Kubernetes replaces them: by way of a link to a directory."""
    caplog.set_level(logging.INFO, "fedround.http.tls")
    other = authority.issue("replaced", "DNS:localhost", "DNS:second.example", "IP:127.0.0.1")
    for version, files in {"1": pair, "2": other}.items():
        (tmp_path / version).mkdir()
        shutil.copy(files.cert, tmp_path / version / "tls.crt")
        shutil.copy(files.key, tmp_path / version / "tls.key")
    (data := tmp_path / "data").symlink_to("1")
    linked = Pair(str(data / "tls.crt"), str(data / "tls.key"))

    async def names(port: int) -> list[str]:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority))
        writer.transport.abort()
        return tls.names(writer.get_extra_info("peercert"))

    async def main() -> None:
        endpoint = served(linked)
        async with serving(endpoint), connected(endpoint.port, trusting(authority)) as former:
            await former.ask("GET", "/")
            assert "connection" not in (await former.answer()).headers
            assert "second.example" not in await names(endpoint.port)
            (tmp_path / "new").symlink_to("2")
            (tmp_path / "new").replace(data)
            assert "second.example" in await names(endpoint.port)
            await former.ask("GET", "/")
            answer = await former.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await former.at_end()

    run(main())
    assert "reloaded" in caplog.text


def test_files_replaced_one_after_the_other_are_no_outage(
    run: Run, authority: Authority, pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedround.http.tls")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    other = authority.server("other")
    shutil.copy(pair.cert, cert)
    shutil.copy(pair.key, key)

    async def main() -> None:
        endpoint = served(Pair(str(cert), str(key)))
        async with serving(endpoint):
            for broken in (other.cert, None, other.cert):
                if broken is None:
                    cert.write_text("half a certifi")
                else:
                    shutil.copy(broken, cert)
                for _ in range(3):
                    assert (await ask(endpoint.port, trusting(authority))).status == 200
            shutil.copy(other.key, key)
            assert (await ask(endpoint.port, trusting(authority))).status == 200

    run(main())
    *errors, last = caplog.messages
    assert "reloaded" in last
    assert ["does not match" in error or "no certificate" in error for error in errors] == [True] * 3
    assert all("A_TLS_" in error and "stay active" in error for error in errors)


def test_an_authority_that_is_removed_lets_nobody_in_any_more(run: Run, authority: Authority, pair: Pair, tmp_path: Path) -> None:
    former = Authority(tmp_path, "former")
    (both := tmp_path / "both.pem").write_text(Path(authority.file).read_text() + Path(former.file).read_text())

    async def main() -> None:
        endpoint = served(pair, str(both))
        silos = [trusting(authority, own.issue("silo-1")) for own in (authority, former)]
        async with serving(endpoint):
            for silo in silos:
                assert (await ask(endpoint.port, silo)).status == 200
            shutil.copy(authority.file, both)
            assert (await ask(endpoint.port, silos[0])).status == 200
            with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
                await ask(endpoint.port, silos[1])

    run(main())


def test_a_handshake_that_does_not_end_is_cut_off(run: Run, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_TIMEOUT", 0.2)

    async def main() -> None:
        endpoint = served(pair)
        async with serving(endpoint):
            for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
                async with connected(endpoint.port) as connection:
                    await connection.send(begun)
                    assert await connection.at_end()

    run(main())


def test_a_handshake_that_has_not_begun_counts_as_a_connection_and_gives_way(run: Run, authority: Authority, pair: Pair) -> None:
    async def main() -> None:
        endpoint = served(pair)
        endpoint.limits = (4, 4)
        async with serving(endpoint), AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(connected(endpoint.port)) for _ in range(4)]
            assert (await ask(endpoint.port, trusting(authority))).status == 200
            ended = [asyncio.create_task(connection.at_end()) for connection in idle]
            done, waiting = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) < len(idle)
            assert all(task.result() for task in done)
            for task in waiting:
                task.cancel()

    run(main())


def test_nonsense_in_place_of_a_handshake_is_cut_off(run: Run, pair: Pair) -> None:
    async def main() -> None:
        endpoint = served(pair)
        async with serving(endpoint), connected(endpoint.port) as connection:
            await connection.send(b"\x16" + os.urandom(5000))
            assert await connection.at_end()

    run(main())


def test_what_cannot_be_served_with_is_told_by_its_setting(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    (nothing := tmp_path / "nothing.pem").write_text("nothing")
    other = authority.server("another")
    cases: list[tuple[tuple[Any, Any, Any], str]] = [
        (("/nowhere", pair.key, None), "A_TLS_CERT_FILE: /nowhere: No such file"),
        ((pair.cert, "/nowhere", None), "A_TLS_KEY_FILE: /nowhere: No such file"),
        ((nothing, pair.key, None), "A_TLS_CERT_FILE: .*nothing.pem: there is no certificate in it"),
        ((pair.cert, nothing, None), "A_TLS_KEY_FILE: .*nothing.pem: there is no private key in it"),
        ((pair.cert, None, None), "A_TLS_CERT_FILE: .*no private key, and A_TLS_KEY_FILE is not set"),
        ((pair.cert, other.key, None), "A_TLS_KEY_FILE: .*does not match the certificate"),
        ((pair.cert, pair.key, "/nowhere"), "A_TLS_CLIENT_CA_FILE: /nowhere: No such file"),
        ((pair.cert, pair.key, nothing), "A_TLS_CLIENT_CA_FILE: .*no certificate"),
        ((None, pair.key, None), "A_TLS_CERT_FILE: is not set, but A_TLS_KEY_FILE is"),
        ((None, None, authority.file), "A_TLS_CERT_FILE: is not set, but A_TLS_CLIENT_CA_FILE is"),
        ((tmp_path, pair.key, None), "A_TLS_CERT_FILE: .*Is a directory"),
    ]
    for files, complaint in cases:
        with pytest.raises(ConfigurationError, match=complaint):
            tls.server("A", *files)


@pytest.mark.parametrize(
    ("options", "flaw"), [({"days": -1}, "certificate has expired"), ({"usage": "clientAuth"}, "unsuitable certificate purpose")]
)
def test_a_certificate_that_peers_will_refuse_is_warned_of(
    authority: Authority, options: dict[str, Any], flaw: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.server("flawed", **options)
    assert tls.server("A", *pair)
    assert caplog.messages == [f"A_TLS_CERT_FILE: {pair.cert}: peers will refuse it: {flaw}"]


def test_a_good_certificate_is_not_warned_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    assert tls.server("A", *authority.server("good", usage="serverAuth"))
    assert caplog.messages == []


# When certificates end


def dates(cert: str) -> tls.Validity:
    """The validity of a certificate, as openssl shows it."""
    shown = subprocess.run([tool("openssl"), "x509", "-in", cert, "-noout", "-dates"], capture_output=True, text=True, check=True)
    return tls.Validity(*(float(ssl.cert_time_to_seconds(line.partition("=")[2])) for line in shown.stdout.splitlines()))


@pytest.mark.parametrize(("days", "age"), [(-1, 0), (10, 355), (20_000, 0)])  # beyond 2050, dates have another form
def test_the_validity_of_a_certificate_is_that_of_openssl(authority: Authority, days: int, age: int) -> None:
    pair = authority.server(f"days{days}", days=days, age=age)
    context = tls.server("A", *pair, client_ca=authority.file)
    assert context is not None
    assert context.validity() == {"A_TLS_CERT_FILE": dates(pair.cert), "A_TLS_CLIENT_CA_FILE": dates(authority.file)}
    assert abs(dates(pair.cert).not_after - time.time() - 86400 * days) < 3600
    assert abs(time.time() - 86400 * age - dates(pair.cert).not_before) < 3600


def test_of_a_file_the_certificate_that_ends_first_counts(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    short = authority.server("short", days=1)
    trusted = subprocess.run([tool("openssl"), "x509", "-in", short.cert, "-trustout"], capture_output=True, text=True, check=True)
    (bundle := tmp_path / "bundle.pem").write_text(f"# ours\n{Path(authority.file).read_text()}{trusted.stdout}")
    assert "TRUSTED CERTIFICATE" in bundle.read_text()
    context = tls.client(tls.Names.of("B"), bundle, pair.cert, pair.key, base=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    assert context.validity() == {"B_TLS_CERT_FILE": dates(pair.cert), "B_TLS_CA_FILE": dates(short.cert)}


def test_the_validity_is_that_of_the_files_in_use(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """Also without a handshake after they were replaced, and while the new ones do not fit together."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    new = authority.server("new", days=30)
    shutil.copy(pair.cert, cert)
    shutil.copy(pair.key, key)
    context = tls.server("A", cert, key)
    assert context is not None
    assert context.validity()["A_TLS_CERT_FILE"] == dates(pair.cert)
    shutil.copy(new.cert, cert)
    assert context.validity()["A_TLS_CERT_FILE"] == dates(pair.cert)
    shutil.copy(new.key, key)
    assert context.validity()["A_TLS_CERT_FILE"] == dates(new.cert)


@pytest.mark.parametrize("block", [b"", b"MA==", b"MAA=", b"MIL/////", b"not base64", b"MAYwBDACMAA=", bytes(range(32, 44))])
def test_what_is_no_certificate_has_no_validity(block: bytes) -> None:
    assert tls._earliest(b"-----BEGIN CERTIFICATE-----\n" + block + b"\n-----END CERTIFICATE-----\n") is None
