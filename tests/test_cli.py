"""The command line: help, exit codes, what is imported when."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fedround import errors
from fedround.cli import COMMANDS, MEANINGS, Exit, exit_code, main
from fedround.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings

SERVICES = [("participant", ParticipantSettings), ("coordinator", CoordinatorSettings), ("aggregator", AggregatorSettings)]
ENVIRON = {
    name: value for name, value in os.environ.items() if name.partition("_")[0] not in ("PARTICIPANT", "COORDINATOR", "AGGREGATOR")
}


def fedround(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "fedround", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env=ENVIRON | environ, check=False)


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    assert list(COMMANDS) == ["participant", "coordinator", "aggregator", "platform", "demo", "model", "status", "healthcheck"]
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
    assert exit_code(error) == code


def test_every_exit_code_has_a_meaning_and_is_in_the_drawing_of_the_errors() -> None:
    assert list(MEANINGS) == list(Exit)
    for code in (Exit.UNREACHABLE, Exit.USER_CODE, Exit.CONFIGURATION):
        assert f"exit {code}\n" in (errors.__doc__ or "")


HEAVY = {"numpy", "httpx", "starlette", "uvicorn", "uvloop", "asyncio"}


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


class Ops(BaseHTTPRequestHandler):
    """An ops port that is alive and not ready."""

    def do_GET(self) -> None:
        self.send_response({"/status": 200, "/readyz": 503}[self.path])
        self.end_headers()
        self.wfile.write(b'{"path": "%s"}' % self.path.encode())

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


def test_healthcheck_fails_with_the_reason_where_a_service_is_not_ready(ops: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", f"{ops}/"]) == 1
    assert capsys.readouterr().out == '{"path": "/readyz"}\n'


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no-url"])
def test_healthcheck_fails_where_nobody_answers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["healthcheck", "--from", url]) == 1
    assert url in capsys.readouterr().err


def test_the_probe_ignores_proxies(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert main(["status", "--from", ops]) == 0
