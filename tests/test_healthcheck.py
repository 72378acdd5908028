"""The commands that request an operations port: status, healthcheck, model."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import chain, repeat

import pytest

from fedround.cli import Exit, main
from fedround.commands.ops_port import OPS
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings
from support.http_server import Handler, Server
from support.peer import Peer, Reply


class Ops(Handler):
    """An ops port of a service that is alive but not ready, with two reasons."""

    def take(self) -> None:
        status, body = {
            "/status": (200, b'{"path": "/status"}'),
            "/readyz": (
                503,
                b'{"ready": false, "reasons": ["no contact with the coordinator: refused", "the process is stopping"]}\n',
            ),
            "/fine/readyz": (200, b'{"ready": true, "reasons": []}\n'),
            "/welcome/status": (200, b"<html>welcome</html>"),
            "/a/list/status": (200, b"[]"),
            "/hostile/status": (200, '{"state": "a\\u001b[2J\\nb", "\u202ex": "\u009b1m"}'.encode()),
            "/hostile/readyz": (503, '{"ready": false, "reasons": ["\\u001b[2J\\nready \u202e"]}'.encode()),
            "/guarded/model": (401, b""),
            "/other/readyz": (200, b"<html>welcome</html>"),
        }.get(self.path, (404, b"[]"))
        self.answer(body, status)


@pytest.fixture
def ops() -> Iterator[str]:
    with Server(Ops) as server:
        yield server.url


def test_status_prints_the_status_of_the_service(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--from", ops]) == 0
    assert capsys.readouterr().out == '{"path": "/status"}\n'


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("{ops}/nothing", "another service answers there; is the URL right? is this the aggregator's ops port, by default 9082?"),
        ("{ops}/guarded", "give the operators' token of the aggregator by --token, or set AGGREGATOR_OPS_TOKEN or FEDROUND_TOKEN"),
        ("localhost:9082", "invalid URL localhost:9082: write it as http://host:port"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_an_error_with_advice(
    url: str, advice: str, ops: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["model", "--from", url.format(ops=ops), "-o", "never-written.npy"]) == 1
    assert caplog.messages[-1].endswith(advice)


@pytest.mark.parametrize(("path", "status"), [("welcome", 200), ("a/list", 200), ("nothing", 404)])
def test_status_of_another_server_is_an_error(path: str, status: int, ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--from", f"{ops}/{path}"]) == 1
    ports = "8080 (participant), 9081 (coordinator), 9082 (aggregator)"
    complaint = f"not an ops port of fedround: /status returned {status}; default ops ports: {ports}\n"
    assert capsys.readouterr() == ("", complaint)


def test_status_without_a_service_names_the_commands_for_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTICIPANT_OPS_PORT", "1")
    assert main(["status"]) == 1
    told = "no answer from http://127.0.0.1:1: Connection refused"
    advice = "; for another service: `fedround status coordinator`, `fedround status aggregator` or --from URL"
    assert capsys.readouterr().err == f"{told}{advice}\n"
    assert main(["status", "participant"]) == 1
    assert capsys.readouterr().err == f"{told}\n"


def test_an_endless_response_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fedround.commands.ops_port.MAX_RESPONSE", 1000)
    with Peer(Reply(chain([b"HTTP/1.1 200 OK\r\n\r\n"], repeat(b"[" * 1000)))) as peer:
        assert main(["healthcheck", "--from", peer.url]) == 1
    assert capsys.readouterr().out.startswith("not an ops port of fedround: ")


@pytest.mark.parametrize("arguments", [["status", "--output", "text"], ["status", "--output", "json"], ["healthcheck"]])
def test_control_characters_of_a_service_are_escaped(arguments: list[str], ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*arguments, "--from", f"{ops}/hostile"])
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.splitlines())
    assert r"[2J\n" in told


def test_status_is_text_in_a_terminal_and_json_elsewhere(
    ops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["status", "--from", ops]) == 0
    assert capsys.readouterr().out == "path  /status\n"
    assert main(["status", "--from", ops, "--output", "json"]) == 0
    assert capsys.readouterr().out == '{"path": "/status"}\n'


@pytest.mark.parametrize(
    ("path", "code", "output"),
    [
        ("", 1, "not ready: no contact with the coordinator: refused, the process is stopping\n"),
        ("fine", 0, "ready\n"),
    ],
)
def test_healthcheck_prints_whether_the_service_is_ready(
    path: str, code: int, output: str, ops: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["healthcheck", "--from", f"{ops}/{path}"]) == code
    assert capsys.readouterr() == (output, "")


@pytest.mark.parametrize("path", ["other", "nothing"])
def test_healthcheck_fails_for_another_server(path: str, ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", f"{ops}/{path}"]) == 1
    assert capsys.readouterr().out.startswith("not an ops port of fedround: ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no-url"])
def test_healthcheck_fails_without_a_response(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", url]) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {url}: ")
    assert main(["status", "--from", url]) == 1
    assert capsys.readouterr().err.startswith(f"no answer from {url}: ")


def test_healthcheck_fails_for_a_server_that_does_not_speak_http(capsys: pytest.CaptureFixture[str]) -> None:
    with Peer(b"220 mail ready\r\n") as peer:
        assert main(["healthcheck", "--from", peer.url]) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {peer.url}: ")


@pytest.mark.parametrize("command", [["status"], ["model", "-o", "model.npy"]])
def test_an_interrupted_command_prints_nothing(command: list[str]) -> None:
    asked, end = threading.Event(), threading.Event()

    def held() -> Iterator[bytes]:
        asked.set()
        end.wait()
        yield b""

    with Peer(Reply(held())) as peer:
        program = [sys.executable, "-m", "fedround", *command, "--from", peer.url]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert asked.wait(20)
            process.send_signal(signal.SIGINT)
            try:
                said, _ = process.communicate(timeout=20)
            finally:
                end.set()
    assert (process.returncode, said) == (Exit.INTERRUPTED, b"")


@pytest.mark.parametrize("service", [[], ["participant"], ["coordinator"], ["aggregator"]])
def test_healthcheck_finds_the_port_in_the_variables_of_the_service(
    service: list[str], ops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bind, port, _ = OPS[service[0] if service else "participant"]
    monkeypatch.setenv(bind, "0.0.0.0")  # noqa: S104 as in a container
    monkeypatch.setenv(port, ops.rpartition(":")[2])
    assert main(["healthcheck", *service]) == 1
    assert capsys.readouterr().out.startswith("not ready: ")


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("::", "", "http://[::1]:1"),
        ("", "tcp://10.0.0.1:9081", "http://127.0.0.1:1"),
        ("localhost", "0", "http://localhost:0"),
    ],
)
def test_healthcheck_asks_the_address_that_the_service_listens_on(
    host: str, port: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPS, "coordinator", (*OPS["coordinator"][:2], "1"))  # another process may listen on the default port
    monkeypatch.setenv("COORDINATOR_BIND", host)
    monkeypatch.setenv("COORDINATOR_OPS_PORT", port)
    assert main(["healthcheck", "coordinator"]) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {url}: ")


def test_healthcheck_knows_the_variables_and_defaults_of_the_ops_ports() -> None:
    services: dict[str, type[Settings]] = {
        "participant": ParticipantSettings,
        "coordinator": CoordinatorSettings,
        "aggregator": AggregatorSettings,
    }
    for name, cls in services.items():
        bind, port, default = OPS[name]
        defaults = {row.variable: row.default for row in cls.rows()}
        assert bind in defaults
        assert defaults[port] == default


def test_status_ignores_proxies(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert main(["status", "--from", ops]) == 0
