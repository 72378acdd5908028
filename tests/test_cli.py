"""The command line: help, settings, exit codes, and lazy imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedround import errors
from fedround.cli import COMMANDS, MEANINGS, Exit, main
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings
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
def test_the_help_of_a_service_has_every_setting_with_flag_variable_and_default(
    command: str, cls: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, capsys=capsys)
    for row in cls.rows():
        default = f", default {row.default}" if row.default else ""
        assert f"{row.flag()} {row.kind}" in text
        assert f"{row.description} [{row.variable}{default}]" in text


def test_the_platform_has_the_flags_of_both_services_with_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("platform", capsys=capsys)
    for flag in ("--coordinator-port", "--aggregator-port", "--coordinator-token-file", "--fedround-internal-secret"):
        assert f" {flag} " in text


def test_the_version_is_printed() -> None:
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
def test_a_misspelt_word_is_an_error_with_a_suggestion(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 64
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_a_participant_without_settings_exits_with_78_and_says_how_to_set_them() -> None:
    done = fedround("participant")
    assert (done.returncode, done.stdout) == (78, "")
    assert "PARTICIPANT_COORDINATOR_URL (--coordinator-url)" in done.stderr
    assert "PARTICIPANT_CLASS (--class)" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_platform_reports_the_problems_of_both_services() -> None:
    done = fedround("platform", "--coordinator-rounds", "x", AGGREGATOR_PORT="-1")
    assert done.returncode == 78
    assert "COORDINATOR_ROUNDS (--coordinator-rounds)" in done.stderr
    assert "AGGREGATOR_PORT (--aggregator-port)" in done.stderr


def test_a_missing_configuration_file_exits_with_78() -> None:
    done = fedround("coordinator", "-c", "/nowhere/coordinator.toml")
    assert done.returncode == 78
    assert "/nowhere/coordinator.toml" in done.stderr


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Return value and source by variable, from a table with aligned columns."""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    starts = [lines[0].index(title) for title in ("variable", "value", "source")]
    assert all(line[start - 1 : start].strip() == "" for line in lines for start in starts)
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[1:]]
    assert len(cells) == len({variable for variable, *_ in cells})
    return {variable: (value, source) for variable, value, source in cells}


def test_show_settings_prints_each_setting_with_its_source_and_no_secrets(tmp_path: Path) -> None:
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


def test_show_settings_names_the_file_as_source(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[federated_learning]\nrounds = 4\nheartbeat_timeout = 5\n[api]\nbind_address = '[::1]:9'\n")
    arguments = ("coordinator", "-c", str(tmp_path / "c.toml"), "--show-settings")
    found = shown(fedround(*arguments, COORDINATOR_ROUNDS="7", FEDROUND_INTERNAL_SECRET="geheim"))
    assert found["COORDINATOR_ROUNDS"] == ("7", "environment")
    assert found["COORDINATOR_HEARTBEAT_TIMEOUT"] == ("5", "file")
    assert (found["COORDINATOR_BIND"], found["COORDINATOR_PORT"]) == (("::1", "file"), ("9", "file"))
    assert found["FEDROUND_INTERNAL_SECRET"] == ("***", "environment")


def test_show_settings_of_the_platform_prints_those_of_both_services() -> None:
    found = shown(fedround("platform", "--show-settings", "--aggregator-port", "7", COORDINATOR_PORT="8"))
    assert set(found) == {row.variable for cls in (CoordinatorSettings, AggregatorSettings) for row in cls.rows()}
    assert (found["AGGREGATOR_PORT"], found["COORDINATOR_PORT"]) == (("7", "flag"), ("8", "environment"))


@pytest.mark.parametrize("command", ["participant", "coordinator", "aggregator", "platform"])
def test_show_settings_reports_invalid_settings(command: str) -> None:
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


def test_every_exit_code_has_a_meaning_and_is_in_the_tree_of_errors() -> None:
    assert list(MEANINGS) == list(Exit)
    for code in (Exit.UNREACHABLE, Exit.USER_CODE, Exit.CONFIGURATION):
        assert f"exit {code}\n" in (errors.__doc__ or "")


HEAVY = {"numpy", "httpx", "starlette", "uvicorn", "uvloop", "asyncio", "opentelemetry", "prometheus_client"}


def imported_by(*arguments: str) -> set[str]:
    """Return the top-level modules that a command imports."""
    program = f"""
import atexit, sys
atexit.register(lambda: print("MODULES", *sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr))
from fedround.cli import main
main({list(arguments)})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRON, check=False)
    return set(done.stderr.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["healthcheck", "--from", "http://127.0.0.1:1"]])
def test_help_and_probes_import_neither_numpy_nor_a_web_server_nor_the_settings(arguments: list[str]) -> None:
    assert not imported_by(*arguments) & (HEAVY | {"pydantic"})


@pytest.mark.parametrize(("command", "_cls"), SERVICES)
def test_the_help_of_a_service_imports_neither_numpy_nor_a_web_server(command: str, _cls: type[Settings]) -> None:
    # pydantic-settings itself needs asyncio.
    assert not imported_by(command, "--help") & (HEAVY - {"asyncio"})


def test_importing_fedround_imports_no_server_and_no_telemetry() -> None:
    program = "import sys, fedround, xain_sdk; fedround.run_participant; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRON, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx" in loaded
    assert not loaded & {"starlette", "uvicorn", "uvloop", "opentelemetry", "prometheus_client", "pydantic"}


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
def test_a_service_that_is_signalled_while_it_imports_exits_silently(command: str, number: str) -> None:
    program = [sys.executable, "-c", SIGNALLED, command, number]
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRON, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
