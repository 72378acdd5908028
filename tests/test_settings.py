"""What the settings promise: names, defaults, precedence, messages."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from fedround.common.settings import (
    AfterFinish,
    AggregatorSettings,
    CoordinatorSettings,
    Isolation,
    ParticipantSettings,
    Push,
    Settings,
    parse_duration,
    parse_size,
)
from fedround.common.sources import load
from fedround.errors import ConfigurationError

NEEDED = {"PARTICIPANT_COORDINATOR_URL": "http://coordinator:8081", "PARTICIPANT_CLASS": "package.module:Class"}
SECRET = "correct-horse-battery"


def participant(environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None) -> ParticipantSettings:
    return load(ParticipantSettings, NEEDED | dict(environ or {}), flags or {})[0]


def problems(cls: type[Settings], environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(cls, environ, flags or {})
    return str(raised.value)


def test_the_participants_defaults_are_the_documented_ones() -> None:
    settings = participant({"PARTICIPANT_NAME": "silo-1"})
    assert settings.model_dump() == {
        "coordinator_url": "http://coordinator:8081",
        "class_": "package.module:Class",
        "flower": None,
        "options": {},
        "local_tensors": (),
        "data_dir": None,
        "name": "silo-1",
        "heartbeat_period": 1.0,
        "long_poll": 15.0,
        "shard": None,
        "shards": None,
        "aggregator_url": None,
        "aggregator_allow": (),
        "max_model_size": 1 << 30,
        "reconnect_max": 1.5,
        "give_up_after": None,
        "max_failures": 5,
        "confirm_timeout": 15.0,
        "cancel_timeout": 10.0,
        "isolation": Isolation.PROCESS,
        "drain_timeout": 8.0,
        "after_finish": AfterFinish.EXIT,
        "token": None,
        "tls_ca_file": None,
        "tls_cert_file": None,
        "tls_key_file": None,
        "trace_heartbeats": True,
        "push": Push.NONE,
        "push_allow": ("fedround", "fedround_*", "http_client_*", "process_*", "python_*"),
        "ops_bind": "0.0.0.0",  # noqa: S104 what is documented
        "ops_port": 8080,
        "ops_tls_cert_file": None,
        "ops_tls_key_file": None,
        "ops_token": None,
        "log_format": "text",
        "log_level": "info",
    }


def test_the_coordinators_defaults_are_the_documented_ones() -> None:
    assert load(CoordinatorSettings, {}, {})[0].model_dump() == {
        "rounds": 10,
        "metrics_participants": 200,
        "participants_ratio": 1.0,
        "run_name": "default",
        "best_by": None,
        "patience": 0,
        "stop_when": None,
        "evaluate_every": 1,
        "evaluate_ratio": 1.0,
        "evaluate_timeout": 600.0,
        "round_config": {},
        "min_clients": 1,
        "heartbeat_timeout": 15.0,
        "round_timeout": 3600.0,
        "quorum": None,
        "grace": 0.0,
        "overselect": 0.0,
        "seats": 1,
        "shared_seats": 1000,
        "aggregator_url": "http://localhost:8082",
        "aggregator_internal_url": "http://localhost:7082",
        "internal_tls_ca_file": None,
        "internal_tls_cert_file": None,
        "internal_tls_key_file": None,
        "otlp_endpoint": None,
        "otlp_headers": None,
        "otlp_namespace": None,
        "data_dir": None,
        "bind": "0.0.0.0",  # noqa: S104
        "port": 8081,
        "ops_port": 9081,
        "token": None,
        "tls_cert_file": None,
        "tls_key_file": None,
        "tls_client_ca_file": None,
        "tokens_file": None,
        "ops_token": None,
        "cors_origins": (),
        "internal_secret": None,
        "max_connections": 0,
        "max_connections_per_address": 0,
        "internal_secret_file": None,
        "log_format": "text",
        "log_level": "info",
    }


def test_the_aggregators_defaults_are_the_documented_ones() -> None:
    assert load(AggregatorSettings, {}, {})[0].model_dump() == {
        "strategy": "weighted_average",
        "strategy_options": {},
        "max_model_size": 1 << 30,
        "max_update_ratio": 100.0,
        "max_update_norm": None,
        "max_samples": 100_000_000,
        "data_dir": None,
        "evaluate": None,
        "keep_models": 10,
        "initial_model": None,
        "spool_dir": None,
        "bind": "0.0.0.0",  # noqa: S104
        "port": 8082,
        "internal_bind": "127.0.0.1",
        "internal_port": 7082,
        "internal_tls_cert_file": None,
        "internal_tls_key_file": None,
        "internal_tls_client_ca_file": None,
        "ops_port": 9082,
        "token": None,
        "tls_cert_file": None,
        "tls_key_file": None,
        "tls_client_ca_file": None,
        "tokens_file": None,
        "ops_token": None,
        "cors_origins": (),
        "internal_secret": None,
        "max_connections": 0,
        "max_connections_per_address": 0,
        "internal_secret_file": None,
        "log_format": "text",
        "log_level": "info",
    }


def test_every_kind_of_value_is_read_as_people_write_it() -> None:
    settings = participant(
        {
            "PARTICIPANT_OPTIONS": '{"epochs": 3}',
            "PARTICIPANT_HEARTBEAT_PERIOD": "500ms",
            "PARTICIPANT_LONG_POLL": "0",
            "PARTICIPANT_SHARD": "3/10",
            "PARTICIPANT_MAX_MODEL_SIZE": "10MB",
            "PARTICIPANT_GIVE_UP_AFTER": "2m",
            "PARTICIPANT_AFTER_FINISH": "wait",
            "PARTICIPANT_LOG_LEVEL": "DEBUG",
            "PARTICIPANT_AGGREGATOR_URL": "https://aggregator/",
        }
    )
    assert (settings.options, settings.heartbeat_period, settings.long_poll) == ({"epochs": 3}, 0.5, 0.0)
    assert (settings.shard, settings.max_model_size, settings.give_up_after) == ((3, 10), 10_000_000, 120.0)
    assert (settings.after_finish, settings.log_level) == (AfterFinish.WAIT, "debug")
    assert settings.aggregator_url == "https://aggregator"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("2m", 120), ("1h", 3600), ("1.5", 1.5), (" 2 s ", 2), (0.25, 0.25)]
)
def test_a_duration_is_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1d", "nan", "inf", "1e3", "1h30m", "1000000001", "9999999h", "9" * 400])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="30s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 << 20), ("1GiB", 1 << 30), ("10MB", 10**7), ("1.5k", 1500), ("7", 7), ("64Mi", 64 << 20)]
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "10 apples", "1.5.0MB", "1kiB", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="512MiB"):
        parse_size(text)


def test_a_participant_is_called_after_its_host_unless_told_otherwise() -> None:
    assert participant().name
    assert "1 to 63" in problems(ParticipantSettings, NEEDED | {"PARTICIPANT_NAME": "Silo 1"})


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_text("[federated_learning]\nrounds = 2\nmin_clients = 2\nheartbeat_timeout = 2\n")
    environ = {"COORDINATOR_ROUNDS": "3", "COORDINATOR_MIN_CLIENTS": "3"}
    settings = load(CoordinatorSettings, environ, {"rounds": "4"}, file=file).settings
    assert (settings.rounds, settings.min_clients, settings.heartbeat_timeout, settings.participants_ratio) == (4, 3, 2.0, 1.0)


def test_an_empty_variable_is_not_set() -> None:
    assert participant({"PARTICIPANT_SHARD": "", "PARTICIPANT_TOKEN": " "}).token is None


def test_settings_made_in_code_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COORDINATOR_ROUNDS", "99")
    settings = CoordinatorSettings(min_clients=3)
    assert (settings.rounds, settings.min_clients) == (10, 3)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CoordinatorSettings().rounds = 3


def test_the_import_reads_no_environment() -> None:
    garbage = {row.variable: "?!" for cls in (ParticipantSettings, CoordinatorSettings, AggregatorSettings) for row in cls.rows()}
    subprocess.run([sys.executable, "-c", "import fedround.common.settings, fedround.cli"], check=True, env=os.environ | garbage)


def test_all_problems_are_told_at_once_each_with_variable_and_flag() -> None:
    text = problems(
        ParticipantSettings,
        {"PARTICIPANT_LONG_POLL": "long", "PARTICIPANT_MAX_FAILURES": "0", "PARTICIPANT_AFTER_FINISH": "stop"},
        {"shard": "3", "options": "{"},
    )
    for name in ("COORDINATOR_URL", "CLASS", "LONG_POLL", "MAX_FAILURES", "AFTER_FINISH", "SHARD", "OPTIONS"):
        assert f"PARTICIPANT_{name} (--{name.lower().replace('_', '-')}): " in text
    assert "for example my_package.my_module:MyParticipant" in text
    assert "not 'long'" in text


@pytest.mark.parametrize(
    "url", ["coordinator:8081", "ftp://coordinator", "http://", "http://host:99999", "http://host/?q=1", "http://user:pass@host"]
)
def test_what_is_no_plain_url_is_refused_and_not_repeated(url: str) -> None:
    text = problems(ParticipantSettings, NEEDED | {"PARTICIPANT_COORDINATOR_URL": url})
    assert "PARTICIPANT_COORDINATOR_URL (--coordinator-url)" in text
    assert "pass@" not in text


def test_header_fields_are_written_as_opentelemetry_has_them() -> None:
    found = load(CoordinatorSettings, {"COORDINATOR_OTLP_HEADERS": "Authorization=Bearer%20abc, x-scope=a=b"}, {}).settings
    assert found.otlp_header_fields == {"Authorization": "Bearer abc", "x-scope": "a=b"}
    assert CoordinatorSettings().otlp_header_fields == {}


@pytest.mark.parametrize("text", ["secret-value", "a b=secret-value", "x=secret-value%0d%0ay:z", "x=", "x=secret-value,"])
def test_wrong_header_fields_are_refused_and_not_repeated(text: str) -> None:
    found = problems(CoordinatorSettings, {"COORDINATOR_OTLP_HEADERS": text})
    assert "write header fields as name=value" in found
    assert "secret-value" not in found


@pytest.mark.parametrize("text", ["fedround *", "a{source=local}", "[a-z]*", "fedround,{"])
def test_wrong_patterns_of_what_is_pushed_are_refused(text: str) -> None:
    found = problems(ParticipantSettings, NEEDED | {"PARTICIPANT_PUSH_ALLOW": text})
    assert "PARTICIPANT_PUSH_ALLOW (--push-allow): " in found
    assert "write names with * and ?" in found


@pytest.mark.parametrize("text", ["module.Class", "module:", ":Class", "a b:C"])
def test_what_is_no_class_is_refused(text: str) -> None:
    assert "my_module:MyClass" in problems(ParticipantSettings, NEEDED | {"PARTICIPANT_CLASS": text})


def test_a_flower_app_takes_the_place_of_a_class() -> None:
    url = {"PARTICIPANT_COORDINATOR_URL": "http://coordinator:8081", "PARTICIPANT_OPTIONS": '{"local": {"epochs": 3}}'}
    settings, _, _ = load(ParticipantSettings, url | {"PARTICIPANT_FLOWER": "package.client_app:app"}, {})
    assert settings.made_from == (
        "fedround.flower:FlowerApp",
        {"app": "package.client_app:app", "run_config": {"local": {"epochs": 3}}},
    )
    assert "PARTICIPANT_CLASS (--class): is not set. Required, unless a Flower app is set." in problems(ParticipantSettings, url)
    both = problems(ParticipantSettings, NEEDED | {"PARTICIPANT_FLOWER": "package.client_app:app"})
    assert "PARTICIPANT_CLASS (--class): PARTICIPANT_FLOWER (--flower) is set too: set only one of them" in both
    assert "PARTICIPANT_FLOWER (--flower): write it as" in problems(ParticipantSettings, url | {"PARTICIPANT_FLOWER": "app"})


def test_the_round_configuration_has_values_and_schedules() -> None:
    text = '{"lr": {"0": 0.1, "20": 0.01}, "epochs": 3, "nesterov": true, "loss": "mse"}'
    settings, _, _ = load(CoordinatorSettings, {"COORDINATOR_ROUND_CONFIG": text}, {})
    assert settings.round_config == {"lr": {0: 0.1, 20: 0.01}, "epochs": 3, "nesterov": True, "loss": "mse"}


@pytest.mark.parametrize(
    "text",
    [
        *('{"lr": [1]}', '{"lr": null}', '{"lr": NaN}', '{"lr": {}}', '{"lr": {"first": 1}}', '{"lr": {"0": {"1": 1}}}'),
        *('{"": 1}', '{"lr": {"-1": 1}}', json.dumps({f"name-{n}": n for n in range(51)}), json.dumps({"text": "x" * 5000})),
    ],
)
def test_a_round_configuration_that_is_none_is_refused(text: str) -> None:
    assert "COORDINATOR_ROUND_CONFIG (--round-config): " in problems(CoordinatorSettings, {"COORDINATOR_ROUND_CONFIG": text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("accuracy >= 0.95", ("accuracy", ">=", 0.95)), ("val loss<.1", ("val loss", "<", 0.1)), ("a>-1e-3", ("a", ">", -0.001))],
)
def test_a_comparison_has_a_metric_and_a_number(text: str, expected: tuple[str, str, float]) -> None:
    settings, _, _ = load(CoordinatorSettings, {"COORDINATOR_STOP_WHEN": text, "COORDINATOR_BEST_BY": "a:b:min"}, {})
    assert settings.stop_when == expected
    assert settings.best_by == ("a:b", False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("STOP_WHEN", text) for text in ("accuracy", "accuracy >=", ">= 3", "a == 1", "a >= b")),
        *(("BEST_BY", text) for text in ("accuracy", "accuracy:most", ":max")),
    ],
)
def test_what_is_no_goal_is_refused(name: str, text: str) -> None:
    assert f"COORDINATOR_{name} (--" in problems(CoordinatorSettings, {f"COORDINATOR_{name}": text})


@pytest.mark.parametrize("text", ["a b", "ä", "x" * 64, "a/b"])
def test_what_is_no_name_of_a_run_is_refused(text: str) -> None:
    assert "a run's name has 1 to 63" in problems(CoordinatorSettings, {"COORDINATOR_RUN_NAME": text})


@pytest.mark.parametrize("text", ["3", "3/0", "-1/3", "a/b"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    assert "INDEX/COUNT" in problems(ParticipantSettings, NEEDED | {"PARTICIPANT_SHARD": text})


@pytest.mark.parametrize(
    ("text", "complaint"), [("{epochs: 3}", "this is not JSON: Expecting"), ("[3]", "this is not a JSON object; ")]
)
def test_options_that_are_no_object_are_told_with_how_to_write_one(text: str, complaint: str) -> None:
    told = problems(ParticipantSettings, NEEDED | {"PARTICIPANT_OPTIONS": text})
    assert f"PARTICIPANT_OPTIONS (--options): {complaint}" in told
    assert """write one as '{"epochs": 3}', in a shell between single quotes""" in told


def test_an_unknown_variable_is_warned_of_with_the_nearest_name() -> None:
    _, warnings, _ = load(CoordinatorSettings, {"COORDINATOR_ROUND": "3", "COORDINATOR_XYZZY": "1", "PARTICIPANT_X": "1"}, {})
    assert warnings == [
        "COORDINATOR_ROUND is not a setting: did you mean COORDINATOR_ROUNDS?",
        "COORDINATOR_XYZZY is not a setting",
    ]


def test_a_misspelt_variable_is_told_of_beside_what_is_missing() -> None:
    text = problems(ParticipantSettings, {"PARTICIPANT_COORDINATOR_URI": "http://coordinator:8081", "PARTICIPANT_CLASS": "a:B"})
    assert "PARTICIPANT_COORDINATOR_URL (--coordinator-url): is not set" in text
    assert "PARTICIPANT_COORDINATOR_URI is not a setting: did you mean PARTICIPANT_COORDINATOR_URL?" in text


def test_what_kubernetes_sets_for_a_service_of_the_same_name_is_not_a_setting() -> None:
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


def test_a_secret_that_cannot_be_read_or_is_set_twice_is_a_problem(tmp_path: Path) -> None:
    missing = {"AGGREGATOR_TOKEN_FILE": str(tmp_path / "none")}
    assert "AGGREGATOR_TOKEN_FILE (--token-file): " in problems(AggregatorSettings, missing)
    assert "set only one of them" in problems(AggregatorSettings, missing | {"AGGREGATOR_TOKEN": SECRET})


def test_a_secret_is_never_shown() -> None:
    settings, *_ = load(CoordinatorSettings, {"COORDINATOR_TOKEN": SECRET, "FEDROUND_INTERNAL_SECRET": SECRET}, {})
    unusable = problems(CoordinatorSettings, {"COORDINATOR_TOKEN": f"{SECRET} and more", "COORDINATOR_ROUNDS": "x"})
    assert "visible ASCII" in unusable
    for text in (repr(settings), str(settings), settings.model_dump_json(), unusable):
        assert SECRET not in text


def test_options_may_hold_secrets_and_are_not_repeated() -> None:
    assert SECRET not in problems(ParticipantSettings, NEEDED | {"PARTICIPANT_OPTIONS": f'["{SECRET}"]'})


def test_options_of_many_levels_are_refused() -> None:
    nested = '{"a":' * 32 + "1" + "}" * 32
    assert load(ParticipantSettings, NEEDED | {"PARTICIPANT_OPTIONS": nested}, {}).settings.options
    assert "more than 32 levels deep" in problems(ParticipantSettings, NEEDED | {"PARTICIPANT_OPTIONS": f'{{"a":{nested}}}'})


@pytest.mark.parametrize(("written", "quorum"), [("0.8", 0.8), ("1", 1.0), ("1.0", 1.0), ("2", 2.0), ("100", 100.0)])
def test_a_quorum_is_a_share_or_a_whole_number(written: str, quorum: float) -> None:
    assert load(CoordinatorSettings, {"COORDINATOR_QUORUM": written}, {}).settings.quorum == quorum


@pytest.mark.parametrize("written", ["0", "-1", "2.5", "1.01", "nan", "inf", "80%", "half"])
def test_any_other_quorum_is_refused(written: str) -> None:
    assert "COORDINATOR_QUORUM (--quorum)" in problems(CoordinatorSettings, {"COORDINATOR_QUORUM": written})


@pytest.mark.parametrize("variable", ["ROUNDS", "PARTICIPANTS_RATIO", "QUORUM", "HEARTBEAT_TIMEOUT", "PORT"])
def test_a_number_of_many_digits_is_refused_in_a_short_message(variable: str) -> None:
    complaint = problems(CoordinatorSettings, {f"COORDINATOR_{variable}": "1" + "0" * 5000})
    assert f"COORDINATOR_{variable} " in complaint
    assert len(complaint) < 400


def test_options_without_an_end_are_no_json() -> None:
    assert "not JSON" in problems(ParticipantSettings, NEEDED | {"PARTICIPANT_OPTIONS": "[" * 60_000})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "aggregator"])  # noqa: S104
def test_an_internal_port_off_loopback_needs_a_secret(host: str) -> None:
    environ = {"AGGREGATOR_INTERNAL_BIND": host}
    assert "FEDROUND_INTERNAL_SECRET" in problems(AggregatorSettings, environ)
    assert load(AggregatorSettings, environ | {"FEDROUND_INTERNAL_SECRET": SECRET}, {})[0].internal_bind == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_an_internal_port_on_loopback_needs_none(host: str) -> None:
    assert load(AggregatorSettings, {"AGGREGATOR_INTERNAL_BIND": host}, {})[0].internal_secret is None


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


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.toml"
    with pytest.raises(ConfigurationError, match=r"coordinator\.toml"):
        load(CoordinatorSettings, {}, {}, file=file)
    deep = ["a = " + "[" * 10_000, "a = " + "{a=" * 10_000, ".".join(["a"] * 10_000) + " = 1", f"[{'.'.join(['a'] * 5000)}]"]
    for text in ("rounds = = 3", "rounds = 1" + "0" * 5000, *deep):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=r"coordinator\.toml"):
            load(CoordinatorSettings, {}, {}, file=file)


@pytest.mark.parametrize("cls", [ParticipantSettings, CoordinatorSettings, AggregatorSettings])
def test_every_setting_has_a_variable_a_flag_and_a_description_of_its_own(cls: type[Settings]) -> None:
    rows = list(cls.rows())
    assert len({row.variable for row in rows}) == len({row.flag() for row in rows}) == len(rows)
    assert all(row.description.endswith(".") for row in rows)


@pytest.mark.parametrize("text", ["a b", "x" * 64, "a\nb", 'fl"', "ä"])
def test_a_namespace_is_a_plain_label(text: str) -> None:
    assert load(CoordinatorSettings, {"COORDINATOR_OTLP_NAMESPACE": "team-a.fl_1"}, {}).settings.otlp_namespace == "team-a.fl_1"
    assert "COORDINATOR_OTLP_NAMESPACE" in problems(CoordinatorSettings, {"COORDINATOR_OTLP_NAMESPACE": text})
