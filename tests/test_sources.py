"""Sources of settings: flags, variables and files, their precedence, and error messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from fedround.common.sources import load
from fedround.errors import ConfigurationError
from support.settings import SECRET, participant, problems


def test_a_flag_overrides_a_variable_the_file_and_the_default(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_text("[federated_learning]\nrounds = 2\nmin_clients = 2\nheartbeat_timeout = 2\n")
    environ = {"COORDINATOR_ROUNDS": "3", "COORDINATOR_MIN_CLIENTS": "3"}
    settings = load(CoordinatorSettings, environ, {"rounds": "4"}, file=file).settings
    assert (settings.rounds, settings.min_clients, settings.heartbeat_timeout, settings.participants_ratio) == (4, 3, 2.0, 1.0)


def test_an_empty_variable_is_not_set() -> None:
    assert participant({"PARTICIPANT_SHARD": "", "PARTICIPANT_TOKEN": " "}).token is None


def test_settings_created_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COORDINATOR_ROUNDS", "99")
    settings = CoordinatorSettings(min_clients=3)
    assert (settings.rounds, settings.min_clients) == (10, 3)


def test_importing_the_settings_ignores_the_environment() -> None:
    garbage = {row.variable: "?!" for cls in (ParticipantSettings, CoordinatorSettings, AggregatorSettings) for row in cls.rows()}
    subprocess.run([sys.executable, "-c", "import fedround.common.settings, fedround.cli"], check=True, env=os.environ | garbage)


def test_all_problems_are_reported_at_once_with_variable_and_flag() -> None:
    text = problems(
        ParticipantSettings,
        {"PARTICIPANT_LONG_POLL": "long", "PARTICIPANT_MAX_FAILURES": "0", "PARTICIPANT_AFTER_FINISH": "stop"},
        {"shard": "3", "options": "{"},
    )
    for name in ("COORDINATOR_URL", "CLASS", "LONG_POLL", "MAX_FAILURES", "AFTER_FINISH", "SHARD", "OPTIONS"):
        assert f"PARTICIPANT_{name} (--{name.lower().replace('_', '-')}): " in text
    assert "for example my_package.my_module:MyParticipant" in text
    assert "not 'long'" in text


def test_an_unknown_variable_is_a_warning_with_the_nearest_name() -> None:
    _, warnings, _ = load(CoordinatorSettings, {"COORDINATOR_ROUND": "3", "COORDINATOR_XYZZY": "1", "PARTICIPANT_X": "1"}, {})
    assert warnings == [
        "COORDINATOR_ROUND is not a setting: did you mean COORDINATOR_ROUNDS?",
        "COORDINATOR_XYZZY is not a setting",
    ]


def test_a_misspelt_variable_is_named_beside_the_missing_setting() -> None:
    text = problems(ParticipantSettings, {"PARTICIPANT_COORDINATOR_URI": "http://coordinator:8081", "PARTICIPANT_CLASS": "a:B"})
    assert "PARTICIPANT_COORDINATOR_URL (--coordinator-url): is not set" in text
    assert "PARTICIPANT_COORDINATOR_URI is not a setting: did you mean PARTICIPANT_COORDINATOR_URL?" in text


def test_variables_that_kubernetes_sets_for_a_service_are_ignored() -> None:
    environ = {
        "COORDINATOR_PORT": "tcp://10.0.0.1:8081",
        "COORDINATOR_SERVICE_HOST": "10.0.0.1",
        "COORDINATOR_SERVICE_PORT_HTTP": "8081",
        "COORDINATOR_PORT_8081_TCP_ADDR": "10.0.0.1",
    }
    settings, warnings, _ = load(CoordinatorSettings, environ, {})
    assert (settings.port, warnings) == (8081, [])


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    by_variable = participant({"PARTICIPANT_TOKEN_FILE": str(file)})
    by_flag = participant({"PARTICIPANT_TOKEN": "another"}, {"token_file": str(file)})
    assert by_variable.token == by_flag.token == SecretStr(SECRET)


def test_a_secret_that_is_unreadable_or_set_twice_is_refused(tmp_path: Path) -> None:
    missing = {"AGGREGATOR_TOKEN_FILE": str(tmp_path / "none")}
    assert "AGGREGATOR_TOKEN_FILE (--token-file): " in problems(AggregatorSettings, missing)
    assert "set only one of them" in problems(AggregatorSettings, missing | {"AGGREGATOR_TOKEN": SECRET})


def test_a_secret_from_an_endless_file_is_refused() -> None:
    assert "AGGREGATOR_TOKEN_FILE (--token-file): the file has more than 4096 bytes" in problems(
        AggregatorSettings, {"AGGREGATOR_TOKEN_FILE": "/dev/zero"}
    )


@pytest.mark.parametrize("value", ['"secret"', "'secret'"])
def test_a_value_in_quotation_marks_is_a_warning(value: str) -> None:
    """`docker run --env-file` and Kubernetes pass them on, other than a shell and Compose."""
    _, warnings, _ = load(CoordinatorSettings, {"COORDINATOR_TOKEN": value, "COORDINATOR_OPS_TOKEN": '"'}, {})
    assert warnings == ["COORDINATOR_TOKEN: the quotation marks are part of the value; remove them if that is not intended"]
    assert "COORDINATOR_ROUNDS: the quotation marks are part" in problems(CoordinatorSettings, {"COORDINATOR_ROUNDS": '"5"'})


def test_secrets_are_never_shown() -> None:
    settings, *_ = load(CoordinatorSettings, {"COORDINATOR_TOKEN": SECRET, "FEDROUND_INTERNAL_SECRET": SECRET}, {})
    unusable = problems(CoordinatorSettings, {"COORDINATOR_TOKEN": f"{SECRET} and more", "COORDINATOR_ROUNDS": "x"})
    assert "visible ASCII" in unusable
    for text in (repr(settings), str(settings), settings.model_dump_json(), unusable):
        assert SECRET not in text


COORDINATOR_FILE = """
log_level = "debug"
aggregator_url = "http://10.0.0.9:8082"
surprise = 1
[api]
bind_address = "localhost:9000"
[rpc]
bind_address = "0.0.0.0:5555"
aggregator_address = "aggregator:6666"
[federated_learning]
rounds = 100
participants_ratio = 0.8
min_clients = 100
heartbeat_timeout = 5
epochs = 3
[metric_store]
database_url = "http://influxdb:8086"
database_name = "metrics"
[logging]
filter = "info,xain_fl=trace"
telemetry = { jaeger_endpoint = "jaeger:6831", service_name = "coordinator" }
"""


def test_the_coordinator_reads_a_file_of_0_8(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_text(COORDINATOR_FILE)
    settings, warnings, _ = load(CoordinatorSettings, {}, {}, file=file)
    assert (settings.rounds, settings.participants_ratio, settings.min_clients, settings.heartbeat_timeout) == (100, 0.8, 100, 5)
    assert (settings.bind, settings.port, settings.aggregator_url) == ("localhost", 9000, "http://10.0.0.9:8082")
    said = "\n".join(warnings)
    for key in ("log_level", "rpc.aggregator_address", "metric_store.database_url", "logging.telemetry.service_name"):
        assert f"{key} has no effect" in said
    for key in ("surprise", "federated_learning.epochs"):
        assert f"{key} is not a setting" in said


@pytest.mark.parametrize(
    ("module", "strategy"),
    [
        ("xain_aggregators.weighted_average", "weighted_average"),
        ("xain_aggregators.model_sum", "model_sum"),
        ("my.rules", "my.rules:Aggregator"),
    ],
)
def test_the_aggregator_reads_a_file_of_0_8(tmp_path: Path, module: str, strategy: str) -> None:
    file = tmp_path / "aggregator.toml"
    file.write_text(f'[aggregation.python]\nmodule = "{module}"\nclass = "Aggregator"\n[api]\nbind_address = "[::1]:9002"\n')
    settings, warnings, _ = load(AggregatorSettings, {}, {}, file=file)
    assert (settings.strategy, settings.bind, settings.port, warnings) == (strategy, "::1", 9002, [])


def test_an_invalid_file_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.toml"
    with pytest.raises(ConfigurationError, match=r"coordinator\.toml"):
        load(CoordinatorSettings, {}, {}, file=file)
    deep = ["a = " + "[" * 10_000, "a = " + "{a=" * 10_000, ".".join(["a"] * 10_000) + " = 1", f"[{'.'.join(['a'] * 5000)}]"]
    for text in ("rounds = = 3", "rounds = 1" + "0" * 5000, *deep):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=r"coordinator\.toml"):
            load(CoordinatorSettings, {}, {}, file=file)
