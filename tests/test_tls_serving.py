"""TLS of our server: one app, real sockets, both kinds of event loop."""

import asyncio
import gc
import logging
import os
import shutil
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.events import ConnectionsChanged
from fedround.http import asgi, certificates, serve, tls
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import Tokens
from support.certificates import Authority, Pair
from support.sockets import Answer, connected
from support.tools import tool

BIG = os.urandom(3_000_000)


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"], autouse=True)
def loop_factory(request: pytest.FixtureRequest) -> Any:
    return request.param


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


def joined(*files: str) -> str:
    return "".join(Path(file).read_text() for file in files)


async def ask(port: int, context: ssl.SSLContext | None, path: str = "/", **headers: str) -> Answer:
    async with connected(port, context) as connection:
        await connection.ask("GET", path, **headers)
        return await connection.answer()


async def test_large_bodies_arrive_complete_in_both_directions(authority: Authority, pair: Pair) -> None:
    endpoint = served(pair)
    async with serving(endpoint), connected(endpoint.port, trusting(authority)) as connection:
        await connection.ask("GET", "/big")
        assert (await connection.answer()).body == BIG
        await connection.ask("POST", "/echo", Content_Length=str(len(BIG)))
        await connection.send(BIG)
        assert (await connection.answer()).body == BIG
        await connection.ask("GET", "/")
        assert (await connection.answer()).body == b" https"


async def test_a_closed_tls_connection_leaves_no_garbage(authority: Authority, pair: Pair) -> None:
    gc.collect()
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


async def test_clients_below_tls_1_2_are_not_served(authority: Authority, pair: Pair) -> None:
    endpoint, old = served(pair), trusting(authority)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.deprecated_call():
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    async with serving(endpoint):
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL"):
            await ask(endpoint.port, old)


async def test_plain_http_on_a_tls_port_is_answered_with_what_to_do(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = served(pair)
    async with serving(endpoint):
        for _ in range(3):
            answer = await ask(endpoint.port, None)
            assert answer.status == 400
            assert b"this port speaks TLS: use https://" in answer.body
    assert [record.message for record in caplog.records] == ["A_PORT: refused a connection: a client does not speak TLS"]


async def test_tls_on_a_plain_port_is_answered_with_what_to_do(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint(asgi.application([]), host="127.0.0.1", port=0, setting="A_PORT")
    async with serving(endpoint):
        for _ in range(3):
            with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
                await ask(endpoint.port, trusting(authority))
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
async def test_the_name_in_the_certificate_is_the_owner(
    authority: Authority, pair: Pair, asked: list[str], shown: str, common: str | None, expected: str
) -> None:
    endpoint, own = served(pair, authority.file), authority.issue(shown, *asked, common=common)
    async with serving(endpoint):
        assert (await ask(endpoint.port, trusting(authority, own))).body.decode() == f"{expected} https"


async def test_a_certificate_without_the_name_of_a_participant_is_refused_with_403(authority: Authority, pair: Pair) -> None:
    endpoint, own = served(pair, authority.file), authority.issue("nameless", common="Silo 1, Hospital")
    async with serving(endpoint):
        answer = await ask(endpoint.port, trusting(authority, own))
        assert answer.status == 403
        assert b"names no participant" in answer.body


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_without_a_certificate_or_with_a_foreign_one_gets_an_alert(
    authority: Authority, pair: Pair, tmp_path: Path, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("silo-1")
    endpoint = served(pair, authority.file)
    async with serving(endpoint):
        for own, alert in ((None, "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"), (stranger, "UNKNOWN_CA")):
            context = trusting(authority, own)
            context.maximum_version = version
            with pytest.raises(ssl.SSLError, match=f"ALERT_({alert})"):
                await ask(endpoint.port, context)
    assert [record.message for record in caplog.records] == [
        "A_PORT: refused a connection: TLS handshake failed: peer did not return a certificate",
        "A_PORT: refused a connection: TLS handshake failed: unable to get local issuer certificate",
    ]


async def test_a_token_or_a_certificate_proves_the_name_and_both_must_agree(
    authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    (file := tmp_path / "tokens").write_text("silo-1 one\nsilo-2 two\n")
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


async def test_replaced_files_apply_to_new_connections_and_close_open_ones(
    authority: Authority, pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Kubernetes replaces them: through a link to a directory."""
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
        return certificates.names(writer.get_extra_info("peercert"))

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
    assert "reloaded" in caplog.text


async def test_files_that_are_replaced_one_after_the_other_cause_no_outage(
    authority: Authority, pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedround.http.tls")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    other = authority.server("other")
    shutil.copy(pair.cert, cert)
    shutil.copy(pair.key, key)
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
    *errors, last = caplog.messages
    assert "reloaded" in last
    assert ["does not match" in error or "no certificate" in error for error in errors] == [True] * 3
    assert all("A_TLS_" in error and "stay active" in error for error in errors)


async def test_clients_of_a_removed_authority_are_refused(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    former = Authority(tmp_path, "former")
    (both := tmp_path / "both.pem").write_text(joined(authority.file, former.file))
    endpoint = served(pair, str(both))
    silos = [trusting(authority, own.issue("silo-1")) for own in (authority, former)]
    async with serving(endpoint):
        for silo in silos:
            assert (await ask(endpoint.port, silo)).status == 200
        shutil.copy(authority.file, both)
        assert (await ask(endpoint.port, silos[0])).status == 200
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            await ask(endpoint.port, silos[1])


async def test_a_handshake_that_does_not_end_times_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_TIMEOUT", 0.2)
    endpoint = served(pair)
    async with serving(endpoint):
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
            async with connected(endpoint.port) as connection:
                await connection.send(begun)
                assert await connection.at_end()


async def test_a_connection_without_a_handshake_counts_and_gives_way_at_the_limit(authority: Authority, pair: Pair) -> None:
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


async def test_nonsense_instead_of_a_handshake_closes_the_connection(pair: Pair) -> None:
    endpoint = served(pair)
    async with serving(endpoint), connected(endpoint.port) as connection:
        await connection.send(b"\x16" + os.urandom(5000))
        assert await connection.at_end()


async def test_a_client_that_updates_its_keys_without_sending_data_is_disconnected(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Each update costs the server more than the client, and no limit of HTTP sees it."""
    endpoint = served(pair)
    async with serving(endpoint):
        # "K": update the keys, and ask the other side to do the same.
        command = f"yes K | {tool('openssl')} s_client -tls1_3 -connect 127.0.0.1:{endpoint.port}"
        nothing = asyncio.subprocess.DEVNULL
        client = await asyncio.create_subprocess_shell(command, stdout=nothing, stderr=nothing)
        async with asyncio.timeout(20):
            await client.wait()
    assert "a client sends TLS records without data" in caplog.text
