"""Settings: names, defaults, and accepted values."""

import json

import pytest
from pydantic import ValidationError

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
from support.settings import NEEDED, SECRET, participant, problems

MANY_DIGITS = "1" + "0" * 5000


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


SERVICE = {
    "bind": "0.0.0.0",  # noqa: S104
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
"""The defaults of both services."""


def test_the_coordinators_defaults_are_the_documented_ones() -> None:
    assert load(CoordinatorSettings, {}, {})[0].model_dump() == SERVICE | {
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
        "port": 8081,
        "ops_port": 9081,
    }


def test_the_aggregators_defaults_are_the_documented_ones() -> None:
    assert load(AggregatorSettings, {}, {})[0].model_dump() == SERVICE | {
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
        "port": 8082,
        "internal_bind": "127.0.0.1",
        "internal_port": 7082,
        "internal_tls_cert_file": None,
        "internal_tls_key_file": None,
        "internal_tls_client_ca_file": None,
        "ops_port": 9082,
    }


def test_durations_sizes_shards_and_words_are_read_from_text() -> None:
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
def test_a_duration_is_read_in_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1d", "nan", "inf", "1e3", "1h30m", "1000000001", "9999999h", "9" * 400])
def test_an_invalid_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="30s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "-1", "10 apples", "1.5.0MB", "1kiB", "9" * 400])
def test_an_invalid_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="512MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 << 20), ("1GiB", 1 << 30), ("10MB", 10**7), ("1.5k", 1500), ("7", 7), ("64Mi", 64 << 20)]
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_the_name_of_a_participant_is_by_default_that_of_its_host() -> None:
    assert participant().name


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CoordinatorSettings().rounds = 3


def test_otlp_headers_have_the_format_of_opentelemetry() -> None:
    found = load(CoordinatorSettings, {"COORDINATOR_OTLP_HEADERS": "Authorization=Bearer%20abc, x-scope=a=b"}, {}).settings
    assert found.otlp_header_fields == {"Authorization": "Bearer abc", "x-scope": "a=b"}
    assert CoordinatorSettings().otlp_header_fields == {}


def test_a_flower_app_replaces_the_class() -> None:
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
    ("text", "expected"),
    [
        ("accuracy >= 0.95", ("accuracy", ">=", 0.95)),
        ("val loss<.1", ("val loss", "<", 0.1)),
        ("a>-1e-3", ("a", ">", -0.001)),
        ("recall@p=0.1 >= 1", ("recall@p=0.1", ">=", 1.0)),
    ],
)
def test_a_comparison_has_a_metric_and_a_number(text: str, expected: tuple[str, str, float]) -> None:
    settings, _, _ = load(CoordinatorSettings, {"COORDINATOR_STOP_WHEN": text, "COORDINATOR_BEST_BY": "a:b:min"}, {})
    assert settings.stop_when == expected
    assert settings.best_by == ("a:b", False)


INVALID: list[tuple[str, list[str], str]] = [
    ("PARTICIPANT_NAME", ["Silo 1"], "1 to 63"),
    (
        "PARTICIPANT_COORDINATOR_URL",
        ["coordinator:8081", "ftp://host", "http://", "http://host:99999", "http://host/?q=1", f"http://user:{SECRET}@host"],
        "",
    ),
    ("PARTICIPANT_CLASS", ["module.Class", "module:", ":Class", "a b:C"], "my_module:MyClass"),
    ("PARTICIPANT_SHARD", ["3", "3/0", "-1/3", "a/b"], "INDEX/COUNT"),
    ("PARTICIPANT_PUSH_ALLOW", ["fedround *", "a{source=local}", "[a-z]*", "fedround,{"], "write names with * and ?"),
    ("PARTICIPANT_OPTIONS", ["{epochs: 3}", "[" * 60_000], "this is not valid JSON"),
    (
        "PARTICIPANT_OPTIONS",
        ["[3]", f'["{SECRET}"]'],
        """this is not a JSON object; write one as '{"epochs": 3}', in a shell between""",
    ),
    ("PARTICIPANT_OPTIONS", ['{"a":' * 33 + "1" + "}" * 33], "more than 32 levels deep"),
    (
        "COORDINATOR_OTLP_HEADERS",
        [SECRET, f"a b={SECRET}", f"x={SECRET}%0d%0ay:z", "x=", f"x={SECRET},"],
        "write header fields as name=value",
    ),
    (
        "COORDINATOR_ROUND_CONFIG",
        [
            *('{"lr": [1]}', '{"lr": null}', '{"lr": NaN}', '{"lr": {}}', '{"lr": {"first": 1}}', '{"lr": {"0": {"1": 1}}}'),
            *('{"": 1}', '{"lr": {"-1": 1}}', json.dumps({f"name-{n}": n for n in range(51)}), json.dumps({"text": "x" * 5000})),
        ],
        "",
    ),
    ("COORDINATOR_ROUND_CONFIG", ['{"lr": 1, "lr": 2}', '{"lr": {"0": 1, "0": 2}}'], "a name occurs twice in an object"),
    ("COORDINATOR_ROUND_CONFIG", ['{"lr": {"1": 1, "01": 2}}'], "lr: write"),
    ("COORDINATOR_STOP_WHEN", ["accuracy", "accuracy >=", ">= 3", "a == 1", "a >= b", "a > 1 and b < 2", "a >= 1e999"], ""),
    ("COORDINATOR_BEST_BY", ["accuracy", "accuracy:most", ":max"], ""),
    ("COORDINATOR_RUN_NAME", ["a b", "ä", "x" * 64, "a/b"], "a run's name has 1 to 63"),
    ("COORDINATOR_QUORUM", ["0", "-1", "2.5", "1.01", "nan", "inf", "80%", "half"], ""),
    *(
        (f"COORDINATOR_{name}", [MANY_DIGITS], "")
        for name in ("ROUNDS", "PARTICIPANTS_RATIO", "QUORUM", "HEARTBEAT_TIMEOUT", "PORT")
    ),
]


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [pytest.param(name, text, said, id=name) for name, texts, said in INVALID for text in texts],
)
def test_an_invalid_value_is_refused_with_its_setting_and_secrets_are_not_repeated(
    variable: str, text: str, complaint: str
) -> None:
    prefix, _, name = variable.partition("_")
    cls, needed = (ParticipantSettings, NEEDED) if prefix == "PARTICIPANT" else (CoordinatorSettings, {})
    found = problems(cls, needed | {variable: text})
    assert f"{variable} (--{name.lower().replace('_', '-')}): " in found
    assert complaint in found
    assert SECRET not in found
    assert len(found) < 500


def test_options_may_have_32_levels() -> None:
    nested = '{"a":' * 32 + "1" + "}" * 32
    assert participant({"PARTICIPANT_OPTIONS": nested}).options


@pytest.mark.parametrize(("written", "quorum"), [("0.8", 0.8), ("1", 1.0), ("1.0", 1.0), ("2", 2.0), ("100", 100.0)])
def test_a_quorum_is_a_share_or_a_whole_number(written: str, quorum: float) -> None:
    assert load(CoordinatorSettings, {"COORDINATOR_QUORUM": written}, {}).settings.quorum == quorum


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        *(("0.0.0.0", True), ("::", True), ("aggregator", True)),  # noqa: S104
        *(("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False)),
    ],
)
def test_an_internal_port_needs_a_secret_unless_it_is_on_loopback(host: str, needed: bool) -> None:
    environ = {"AGGREGATOR_INTERNAL_BIND": host}
    if needed:
        assert "FEDROUND_INTERNAL_SECRET" in problems(AggregatorSettings, environ)
        environ["FEDROUND_INTERNAL_SECRET"] = SECRET
    assert load(AggregatorSettings, environ, {})[0].internal_bind == host


@pytest.mark.parametrize("cls", [ParticipantSettings, CoordinatorSettings, AggregatorSettings])
def test_every_setting_has_its_own_variable_flag_and_description(cls: type[Settings]) -> None:
    rows = list(cls.rows())
    assert len({row.variable for row in rows}) == len({row.flag() for row in rows}) == len(rows)
    assert all(row.description.endswith(".") for row in rows)


@pytest.mark.parametrize("text", ["a b", "x" * 64, "a\nb", 'fl"', "ä"])
def test_a_namespace_is_a_plain_label(text: str) -> None:
    assert load(CoordinatorSettings, {"COORDINATOR_OTLP_NAMESPACE": "team-a.fl_1"}, {}).settings.otlp_namespace == "team-a.fl_1"
    assert "COORDINATOR_OTLP_NAMESPACE" in problems(CoordinatorSettings, {"COORDINATOR_OTLP_NAMESPACE": text})
