"""The command line: help, exit codes, what is imported when."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain, repeat
from pathlib import Path

import pytest

from fedround import errors
from fedround.cli import COMMANDS, MEANINGS, Exit, main
from fedround.commands.ops_port import OPS
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings
from support.peer import Peer, Reply
from support.processes import fedround

SERVICES: list[tuple[str, type[Settings]]] = [
    ("participant", ParticipantSettings),
    ("coordinator", CoordinatorSettings),
    ("aggregator", AggregatorSettings),
]
ENVIRON = {
    name: value for name, value in os.environ.items() if name.partition("_")[0] not in ("PARTICIPANT", "COORDINATOR", "AGGREGATOR")
}


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    services, asking = ["participant", "coordinator", "aggregator", "platform"], ["status", "healthcheck"]
    assert list(COMMANDS) == [*services, "new", "demo", "tutorial", "model", "rollback", "runs", "history", *asking]
    for command in COMMANDS.values():
        assert command.__doc__ is not None
        assert command.__doc__ in text


@pytest.mark.parametrize(("command", "cls"), SERVICES)
def test_a_services_help_tells_of_every_setting_its_flag_variable_and_default(
    command: str, cls: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, capsys=capsys)
    for row in cls.rows():
        default = f", default {row.default}" if row.default else ""
        assert f"{row.flag()} {row.kind}" in text
        assert f"{row.description} [{row.variable}{default}]" in text


def test_the_platforms_flags_are_those_of_both_services_by_their_long_names(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("platform", capsys=capsys)
    for flag in ("--coordinator-port", "--aggregator-port", "--coordinator-token-file", "--fedround-internal-secret"):
        assert f" {flag} " in text


def test_the_version_is_shown() -> None:
    done = fedround("--version")
    assert (done.returncode, done.stdout) == (0, "fedround 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["coordinator", "--prot", "1"], ["coordinator", "--por", "1"], ["model"], ["status", "--from", "a", "b"]],
)
def test_a_wrong_command_line_exits_with_64(arguments: list[str]) -> None:
    done = fedround(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("usage: fedround")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["partcipant"], "fedround: unknown command partcipant: did you mean participant?"),
        (["coordinator", "--ruonds=3"], "fedround coordinator: unknown option --ruonds: did you mean --rounds?"),
        (["platform", "--rounds", "3"], "fedround platform: unknown option --rounds: did you mean --coordinator-rounds?"),
        (
            ["platform", "--data-dir", "/data"],
            "fedround platform: unknown option --data-dir: did you mean --aggregator-data-dir or --coordinator-data-dir?",
        ),
        (["status", "coordinator", "now"], "fedround status: unknown argument now: --help lists all"),
    ],
)
def test_what_is_misspelt_is_told_with_what_was_meant(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 64
    assert capsys.readouterr().err.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("nothing", "another service answers there; is the URL right? is this the aggregator's ops port, by default 9082?"),
        (
            "guarded",
            "give the operators' token of the aggregator by --token, or set AGGREGATOR_OPS_TOKEN or FEDROUND_TOKEN",
        ),
    ],
)
def test_who_finds_no_model_is_told_where_one_is(path: str, advice: str, ops: str, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["model", "--from", f"{ops}/{path}", "-o", "never-written.npy"]) == 1
    assert caplog.messages[-1].endswith(advice)


def test_a_model_is_asked_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["model", "--from", "localhost:9082", "-o", "never-written.npy"]) == 1
    assert caplog.messages[-1] == "invalid URL localhost:9082: write it as http://host:port"


def test_a_participant_without_settings_exits_with_78_and_says_how_to_set_them() -> None:
    done = fedround("participant")
    assert (done.returncode, done.stdout) == (78, "")
    assert "PARTICIPANT_COORDINATOR_URL (--coordinator-url)" in done.stderr
    assert "PARTICIPANT_CLASS (--class)" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_platform_tells_of_the_problems_of_both_services() -> None:
    done = fedround("platform", "--coordinator-rounds", "x", AGGREGATOR_PORT="-1")
    assert done.returncode == 78
    assert "COORDINATOR_ROUNDS (--coordinator-rounds)" in done.stderr
    assert "AGGREGATOR_PORT (--aggregator-port)" in done.stderr


def test_a_configuration_file_that_is_not_there_exits_with_78() -> None:
    done = fedround("coordinator", "-c", "/nowhere/coordinator.toml")
    assert done.returncode == 78
    assert "/nowhere/coordinator.toml" in done.stderr


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Value and source by variable, of a table whose columns stand one below the other."""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    starts = [lines[0].index(title) for title in ("variable", "value", "source")]
    assert all(line[start - 1 : start].strip() == "" for line in lines for start in starts)
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[1:]]
    assert len(cells) == len({variable for variable, *_ in cells})
    return {variable: (value, source) for variable, value, source in cells}


def test_the_settings_in_force_are_shown_with_their_source_and_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct-horse\n")
    done = fedround(
        *("participant", "--class", "my.module:Mine", "--drain-timeout", "2m", "--show-settings"),
        PARTICIPANT_COORDINATOR_URL="http://coordinator:8081",
        PARTICIPANT_MAX_MODEL_SIZE="512MiB",
        PARTICIPANT_OPTIONS='{"epochs": 3, "db": {"password": "battery"}, "more": ["staple"]}',
        PARTICIPANT_TOKEN_FILE=str(tmp_path / "secret"),
        PARTICIPANT_DRAIN_TIMEOUT="5s",
        PARTICIPANT_MAXFAILURES="3",
    )
    found = shown(done)
    assert list(found) == [row.variable for row in ParticipantSettings.rows()]
    assert found["PARTICIPANT_CLASS"] == ("my.module:Mine", "flag")
    assert found["PARTICIPANT_DRAIN_TIMEOUT"] == ("2m", "flag")
    assert found["PARTICIPANT_MAX_MODEL_SIZE"] == ("512MiB", "environment")
    assert found["PARTICIPANT_TOKEN"] == ("***", "environment")
    assert found["PARTICIPANT_TOKEN_FILE"] == (str(tmp_path / "secret"), "environment")
    assert found["PARTICIPANT_OPTIONS"][0] == '{"epochs": 3, "db": {"password": "***"}, "more": ["***"]}'
    assert found["PARTICIPANT_GIVE_UP_AFTER"] == ("never", "default")
    assert found["PARTICIPANT_SHARD"] == ("-", "default")
    assert found["PARTICIPANT_NAME"] not in (("-", "default"), ("", "default"))
    assert "PARTICIPANT_MAXFAILURES is not a setting: did you mean PARTICIPANT_MAX_FAILURES?" in done.stderr
    for secret in ("correct-horse", "battery", "staple"):
        assert secret not in done.stdout + done.stderr


def test_the_settings_of_a_file_are_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[federated_learning]\nrounds = 4\nheartbeat_timeout = 5\n[api]\nbind_address = '[::1]:9'\n")
    arguments = ("coordinator", "-c", str(tmp_path / "c.toml"), "--show-settings")
    found = shown(fedround(*arguments, COORDINATOR_ROUNDS="7", FEDROUND_INTERNAL_SECRET="geheim"))
    assert found["COORDINATOR_ROUNDS"] == ("7", "environment")
    assert found["COORDINATOR_HEARTBEAT_TIMEOUT"] == ("5", "file")
    assert (found["COORDINATOR_BIND"], found["COORDINATOR_PORT"]) == (("::1", "file"), ("9", "file"))
    assert found["FEDROUND_INTERNAL_SECRET"] == ("***", "environment")


def test_the_settings_of_the_platform_are_those_of_both_services() -> None:
    found = shown(fedround("platform", "--show-settings", "--aggregator-port", "7", COORDINATOR_PORT="8"))
    assert set(found) == {row.variable for cls in (CoordinatorSettings, AggregatorSettings) for row in cls.rows()}
    assert (found["AGGREGATOR_PORT"], found["COORDINATOR_PORT"]) == (("7", "flag"), ("8", "environment"))


@pytest.mark.parametrize("command", ["participant", "coordinator", "aggregator", "platform"])
def test_wrong_settings_are_not_shown_but_told(command: str) -> None:
    wrong = {"PARTICIPANT_SHARDS": "x", "COORDINATOR_LOG_LEVEL": "x", "AGGREGATOR_LOG_LEVEL": "x"}
    done = fedround(command, "--show-settings", **wrong)
    assert (done.returncode, done.stdout) == (78, "")
    assert "invalid settings" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("x"), 78),
        (errors.TrainingError("x"), 70),
        (errors.CoordinatorUnreachable("x"), 69),
        (errors.Unreachable("x"), 1),
    ],
)
def test_an_error_has_its_exit_code(error: errors.FedroundError, code: int) -> None:
    assert Exit(error.exit_code) == code


def test_every_exit_code_has_a_meaning_and_is_in_the_drawing_of_the_errors() -> None:
    assert list(MEANINGS) == list(Exit)
    for code in (Exit.UNREACHABLE, Exit.USER_CODE, Exit.CONFIGURATION):
        assert f"exit {code}\n" in (errors.__doc__ or "")


HEAVY = {"numpy", "httpx", "starlette", "uvicorn", "uvloop", "asyncio", "opentelemetry", "prometheus_client"}


def imported_by(*arguments: str) -> set[str]:
    """The top-level modules that a command loads."""
    program = f"""
import atexit, sys
atexit.register(lambda: print("MODULES", *sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr))
from fedround.cli import main
main({list(arguments)})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRON, check=False)
    return set(done.stderr.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["healthcheck", "--from", "http://127.0.0.1:1"]])
def test_help_and_probes_load_neither_numpy_nor_a_web_server_nor_the_settings(arguments: list[str]) -> None:
    assert not imported_by(*arguments) & (HEAVY | {"pydantic"})


@pytest.mark.parametrize(("command", "_cls"), SERVICES)
def test_a_services_help_loads_neither_numpy_nor_a_web_server(command: str, _cls: type[Settings]) -> None:
    # pydantic-settings itself needs asyncio.
    assert not imported_by(command, "--help") & (HEAVY - {"asyncio"})


def test_to_import_fedround_loads_no_server_and_no_telemetry() -> None:
    program = "import sys, fedround, xain_sdk; fedround.run_participant; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRON, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx" in loaded
    assert not loaded & {"starlette", "uvicorn", "uvloop", "opentelemetry", "prometheus_client", "pydantic"}


class Ops(BaseHTTPRequestHandler):
    """An ops port that is alive and not ready, with two reasons."""

    def do_GET(self) -> None:
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
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def ops() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Ops) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_status_shows_what_the_service_says(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--from", ops]) == 0
    assert capsys.readouterr().out == '{"path": "/status"}\n'


@pytest.mark.parametrize(("path", "status"), [("welcome", 200), ("a/list", 200), ("nothing", 404)])
def test_status_of_something_else_is_none(path: str, status: int, ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--from", f"{ops}/{path}"]) == 1
    ports = "8080 (participant), 9081 (coordinator), 9082 (aggregator)"
    complaint = f"not an ops port of fedround: /status returned {status}; default ops ports: {ports}\n"
    assert capsys.readouterr() == ("", complaint)


def test_who_asks_nobody_in_particular_is_told_how_to_ask_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTICIPANT_OPS_PORT", "1")
    assert main(["status"]) == 1
    told = "no answer from http://127.0.0.1:1: Connection refused"
    advice = "; for another service: `fedround status coordinator`, `fedround status aggregator` or --from URL"
    assert capsys.readouterr().err == f"{told}{advice}\n"
    assert main(["status", "participant"]) == 1
    assert capsys.readouterr().err == f"{told}\n"


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fedround.commands.ops_port.MAX_RESPONSE", 1000)
    with Peer(Reply(chain([b"HTTP/1.1 200 OK\r\n\r\n"], repeat(b"[" * 1000)))) as peer:
        assert main(["healthcheck", "--from", peer.url]) == 1
    assert capsys.readouterr().out.startswith("not an ops port of fedround: ")


@pytest.mark.parametrize("arguments", [["status", "--output", "text"], ["status", "--output", "json"], ["healthcheck"]])
def test_what_a_service_says_does_nothing_to_a_terminal(arguments: list[str], ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*arguments, "--from", f"{ops}/hostile"])
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.splitlines())
    assert r"[2J\n" in told


def test_status_is_for_people_where_they_look(
    ops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["status", "--from", ops]) == 0
    assert capsys.readouterr().out == "path  /status\n"
    assert main(["status", "--from", ops, "--output", "json"]) == 0
    assert capsys.readouterr().out == '{"path": "/status"}\n'


def test_healthcheck_fails_with_the_reason_where_a_service_is_not_ready(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", f"{ops}/"]) == 1
    assert capsys.readouterr() == ("not ready: no contact with the coordinator: refused, the process is stopping\n", "")


def test_healthcheck_says_that_a_service_is_ready(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", f"{ops}/fine"]) == 0
    assert capsys.readouterr() == ("ready\n", "")


@pytest.mark.parametrize("path", ["other", "nothing"])
def test_healthcheck_fails_where_something_else_answers(path: str, ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", f"{ops}/{path}"]) == 1
    assert capsys.readouterr().out.startswith("not an ops port of fedround: ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no-url"])
def test_healthcheck_fails_where_nobody_answers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", url]) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {url}: ")
    assert main(["status", "--from", url]) == 1
    assert capsys.readouterr().err.startswith(f"no answer from {url}: ")


def test_healthcheck_fails_where_no_http_is_spoken(capsys: pytest.CaptureFixture[str]) -> None:
    with Peer(b"220 mail ready\r\n") as peer:
        assert main(["healthcheck", "--from", peer.url]) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {peer.url}: ")


@pytest.mark.parametrize("command", [["status"], ["model", "-o", "model.npy"]])
def test_who_asks_may_be_interrupted_and_says_nothing_of_it(command: list[str]) -> None:
    asked, end = threading.Event(), threading.Event()

    def held() -> Iterator[bytes]:
        asked.set()
        end.wait()
        yield b""

    with Peer(Reply(held())) as peer:
        program = [sys.executable, "-m", "fedround", *command, "--from", peer.url]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRON) as process:
            assert asked.wait(20)
            process.send_signal(signal.SIGINT)
            try:
                said, _ = process.communicate(timeout=20)
            finally:
                end.set()
    assert (process.returncode, said) == (Exit.INTERRUPTED, b"")


@pytest.mark.parametrize("service", [[], ["participant"], ["coordinator"], ["aggregator"]])
def test_healthcheck_finds_the_service_by_its_variables(
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
def test_healthcheck_asks_where_the_service_listens(
    host: str, port: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPS, "coordinator", (*OPS["coordinator"][:2], "1"))  # on the default port somebody may listen
    monkeypatch.setenv("COORDINATOR_BIND", host)
    monkeypatch.setenv("COORDINATOR_OPS_PORT", port)
    assert main(["healthcheck", "coordinator"]) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {url}: ")


def test_the_probe_knows_the_variables_and_defaults_of_the_ops_ports() -> None:
    for name, cls in SERVICES:
        bind, port, default = OPS[name]
        defaults = {row.variable: row.default for row in cls.rows()}
        assert bind in defaults
        assert defaults[port] == default


def test_the_probe_ignores_proxies(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert main(["status", "--from", ops]) == 0


SIGNALLED = """
import os, signal, sys

class Finder:
    def find_spec(name, *_):
        if name == "pydantic":
            os.kill(os.getpid(), getattr(signal, sys.argv.pop()))

sys.meta_path.insert(0, Finder)

from fedround.cli import main

sys.exit(main())
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("command", ["participant", "coordinator", "aggregator", "platform"])
def test_a_service_that_is_told_to_end_while_it_imports_ends_in_silence(command: str, number: str) -> None:
    program = [sys.executable, "-c", SIGNALLED, command, number]
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRON, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
