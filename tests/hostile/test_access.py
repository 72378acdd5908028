"""Access: operators' pages, the internal port, and tokens files."""

import http.client
import json
import resource
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from hostile.arena import Arena
from hostile.attackers import DrippingBody, EndlessUpload, Flood, IdleCrowd, Pipeliner, Together
from hostile.client import ENEMY, Client, ask
from support.processes import Process, kept_in, running, until
from support.updates import update

pytestmark = pytest.mark.timeout(180)  # other tests use the two cores, too

OPS_TOKEN = "token-of-the-operators"
TOKENS = {"silo-0": "token-of-silo-0", "silo-1": "token-of-silo-1", "silo-2": "token-of-silo-2"}
SHOWN = {
    "COORDINATOR_OPS_PORT": ["/", "/status", "/metrics", "/openapi.json", "/events"],
    "AGGREGATOR_OPS_PORT": ["/status", "/metrics", "/openapi.json", "/model"],
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """An arena in which participants and operators have tokens."""
    with Arena(tmp_path_factory.mktemp("guarded"), tokens=TOKENS, ops_token=OPS_TOKEN) as arena:
        yield arena


@pytest.mark.parametrize(("port", "path"), [(port, path) for port, paths in SHOWN.items() for path in paths])
@pytest.mark.parametrize("token", [None, TOKENS["silo-0"], "guess"])
def test_operators_endpoints_require_the_operators_token(guarded: Arena, port: str, path: str, token: str | None) -> None:
    assert ask(guarded.port(port), "GET", path, token=token).status in (401, 403)


@pytest.mark.parametrize("port", SHOWN)
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_need_no_token(guarded: Arena, port: str, path: str) -> None:
    assert ask(guarded.port(port), "GET", path).status == 200


@pytest.mark.parametrize(("port", "path"), [(port, path) for port, paths in SHOWN.items() for path in paths if path != "/events"])
def test_operators_endpoints_answer_to_the_operators_token(guarded: Arena, port: str, path: str) -> None:
    assert ask(guarded.port(port), "GET", path, token=OPS_TOKEN).status == 200


def test_the_operators_token_is_not_valid_for_participants(guarded: Arena) -> None:
    assert ask(guarded.port("COORDINATOR_PORT"), "GET", "/rendez_vous", token=OPS_TOKEN).status in (401, 403)


def test_the_weights_of_a_silo_are_hidden_by_default(guarded: Arena) -> None:
    guarded.trains()
    metrics = ask(guarded.port("PARTICIPANT_OPS_PORT"), "GET", "/metrics").body.decode()
    assert "fedround_participant_rounds_joined_total" in metrics
    assert 'fedround_participant_weight_value{index="0",source="local"}' not in metrics


# The port between the services


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Coordinator and aggregator as two processes without a configured secret."""
    with Arena(tmp_path_factory.mktemp("apart"), apart=True) as arena:
        yield arena


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain", "Origin": "http://evil.example"},
        {"Content-Type": "text/plain;application/json", "Origin": "http://evil.example"},
        {"Origin": "http://evil.example"},
        {"Content-Type": "application/json", "Origin": "http://evil.example"},
        {"Content-Type": "application/json"},
    ],
)
def test_a_web_page_cannot_replace_the_model(apart: Arena, headers: dict[str, str]) -> None:
    message = json.dumps({"attempt": "a", "round": 999, "admissions": [["0" * 32, "1" * 32]], "forget": []}).encode()
    answer = ask(apart.port("AGGREGATOR_INTERNAL_PORT"), "POST", "/books/open", message, source="127.0.0.1", headers=headers)
    assert answer.status in (401, 403, 415)
    assert "access-control-allow-origin" not in answer.headers
    apart.trains()
    apart.check()


@pytest.mark.parametrize("source", [ENEMY, "127.0.0.1"])
def test_attackers_at_the_internal_port_stop_no_training(apart: Arena, source: str) -> None:
    port = apart.port("AGGREGATOR_INTERNAL_PORT")
    attacks = (
        Pipeliner(port, source=source),
        IdleCrowd(port, 500, source=source),
        EndlessUpload(port, "/books/open", source=source),
        Flood(port, "/books/ledger", source=source),
        DrippingBody(port, "/books/close", threads=10, source=source),
    )
    apart.withstands(Together(*attacks))


# Files of tokens


@contextmanager
def guarded_by(file: Path, text: str) -> Iterator[tuple[Process, int]]:
    """Run a platform that only this tokens file protects, and yield it with the coordinator's port."""
    file.write_text(text)
    with running("platform", COORDINATOR_TOKENS_FILE=str(file), AGGREGATOR_TOKENS_FILE=str(file)) as platform:
        yield platform, int(platform.ports["COORDINATOR_PORT"])


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def admitted(port: int, token: str) -> bool:
    return ask(port, "GET", "/rendez_vous", token=token).status == 200


def test_a_token_that_is_revoked_while_the_file_is_unreadable_is_refused_later(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with guarded_by(file, "anna secret-of-anna\nben secret-of-ben\n") as (platform, port):
        assert admitted(port, "secret-of-ben")
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:

            def status() -> int:
                connection.request("GET", "/rendez_vous", headers={"Authorization": "Bearer secret-of-anna"})
                with connection.getresponse() as answer:
                    answer.read()
                return answer.status

            assert status() == 200
            limits = resource.prlimit(platform.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(platform.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            replace(file, "anna secret-of-anna\n")
            assert status() in (200, 401), "the connection is there already; the file cannot be opened"
            resource.prlimit(platform.pid, resource.RLIMIT_NOFILE, limits)
        assert not admitted(port, "secret-of-ben")
        assert admitted(port, "secret-of-anna")


def test_no_part_of_a_token_in_a_half_written_file_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    whole = "anna secret-of-anna\nben secret-of-ben\n"
    with guarded_by(file, whole) as (_, port), file.open("r+") as writing:
        writing.truncate(whole.index("cret-of-ben"))
        assert not admitted(port, "se")
        assert admitted(port, "secret-of-anna")
        writing.seek(0)
        writing.write(whole)
        writing.flush()
        assert admitted(port, "secret-of-ben")
        assert not admitted(port, "se")


def test_a_file_that_is_removed_and_restored_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with guarded_by(file, "anna secret-of-anna\n") as (platform, port):
        file.unlink()
        assert ask(port, "GET", "/rendez_vous", token="secret-of-anna").status in (200, 401)
        replace(file, "ben secret-of-ben\n")
        assert admitted(port, "secret-of-ben")
        assert not admitted(port, "secret-of-anna")
        assert platform.probe("/livez")[0] == 200


def test_an_upload_whose_token_is_revoked_meanwhile_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with guarded_by(file, "anna secret-of-anna\nben secret-of-ben\n") as (platform, port):
        ben = Client(port, int(platform.ports["AGGREGATOR_PORT"]), name="ben", token="secret-of-ben")
        ben.register()
        assert ben.selected()
        body = update(1, 1.0, 2.0, 3.0)
        head = f"POST {ben.update_path} HTTP/1.1\r\nHost: here\r\n"
        head += f"Authorization: Bearer {ben.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", ben.aggregator), timeout=10) as connection:
            connection.sendall(head.encode() + body[:-4])
            until(lambda: platform.status("AGGREGATOR_OPS_PORT")["receiving"] == 1)
            replace(file, "anna secret-of-anna\n")
            connection.sendall(body[-4:])
            assert connection.recv(4096).split()[1] in (b"401", b"403")
        assert platform.status("COORDINATOR_OPS_PORT")["counted"] == 0
        assert platform.status("COORDINATOR_OPS_PORT")["round"] == 0


def test_stored_data_of_participants_is_readable_only_by_the_service(tmp_path: Path) -> None:
    with running("platform", **kept_in(tmp_path)) as platform:
        one = Client(int(platform.ports["COORDINATOR_PORT"]), int(platform.ports["AGGREGATOR_PORT"]), name="silo-0")
        one.register()
        assert one.selected()
        rounds = tmp_path / "coordinator" / "rounds.json"
        until(rounds.exists)
        assert rounds.stat().st_mode & 0o077 == 0
