"""The settings of the three services. One definition each makes the variable, the flag, its help and its row in the reference.

They are plain frozen values: only `sources.load` knows where they come from. Nothing is read at import.
"""

import ipaddress
import json
import math
import re
import socket
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fedround.common.wire import MAX_FIGURE_NAME, clean_name, parse_name
from fedround.http.hosts import PATTERN

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
LOCAL_SERIES = '{source="local"}'
"""With which a pattern ends that means series of the local model."""
LONGEST = 10**9
"""Seconds; no clock of the system waits for much longer."""
MOST_CONFIGURED, MOST_CONFIG_BYTES = 50, 4096
"""Names, and bytes of JSON, of the round configuration."""
MOST_NESTED = 32
"""Levels of a JSON object."""
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Isolation(StrEnum):
    """Where a participant's own code runs."""

    PROCESS = "process"
    THREAD = "thread"


class Push(StrEnum):
    """Where a participant pushes its telemetry, beside what the `OTEL_*` variables say."""

    NONE = "none"
    COORDINATOR = "coordinator"


class AfterFinish(StrEnum):
    """What a participant does when training is complete."""

    EXIT = "exit"
    WAIT = "wait"


def parse_duration(value: object) -> float:
    """Seconds, from `500ms`, `30s`, `2m`, `1h` or plain seconds."""
    match = re.fullmatch(r"(\d+\.?\d*) *(ms|s|m|h|)", str(value).strip())
    seconds = math.inf if match is None else float(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST:
        raise ValueError(f"write a duration as 500ms, 30s, 2m, 1h or in plain seconds, {LONGEST} at most")
    return seconds


def parse_size(value: object) -> int:
    """Bytes, from `512MiB`, `1GiB`, `10MB` or plain bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d*)?) *([kMGT]|[KMGT]i|)B?", str(value).strip())
    if match is None:
        raise ValueError("write a size as 512MiB, 1GiB, 10MB or in plain bytes")
    return int(float(match[1]) * _BYTES[match[2]])


def _duration_or_never(value: object) -> float | None:
    return None if value in (None, "never") else parse_duration(value)


def _quorum(value: float | None) -> float | None:
    if value is not None and value > 1 and not value.is_integer():
        raise ValueError("write a share such as 0.8, 1 for all, or a whole number from 2 on")
    return value


def _shard(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", value)
    if match is None:
        raise ValueError("write a shard as INDEX/COUNT, for instance 3/10")
    return int(match[1]), int(match[2])


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        raise ValueError("write a URL as http://host:port or https://host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials do not belong in a URL, which is logged and shown: set the token instead")
    return value.rstrip("/")


def _name(value: str | None) -> str:
    value = clean_name(socket.gethostname()) if value is None else value
    if parse_name(value) is None:
        raise ValueError("a name has 1 to 63 of the characters a-z, 0-9, '.' and '-'")
    return value


def _hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    hosts = tuple(filter(None, re.split(r"[\s,]+", value.strip().lower())))
    if not all(PATTERN.fullmatch(host) for host in hosts):
        raise ValueError("write host names with commas between them, such as agg.example.org,*.example.net")
    return hosts


def _class(value: str | None, info: ValidationInfo) -> str | None:
    flower = info.data.get("flower")
    if value is None and flower is None:
        raise PydanticCustomError("missing", "is not set")
    if value is not None and flower is not None:
        raise ValueError("PARTICIPANT_FLOWER (--flower) is set too: which of them is meant?")
    return value if value is None else _object(value)


def _object(value: str | None, example: str = "MyClass") -> str | None:
    if value is not None and re.fullmatch(r"[\w.]+:[\w.]+", value) is None:
        raise ValueError(f"write it as my_package.my_module:{example}")
    return value


def _function(value: str | None) -> str | None:
    return _object(value, "my_function")


def _json_object(value: object) -> object:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}; {_OBJECT}") from None
    if not isinstance(value, dict):
        raise ValueError(f"this is no JSON object; {_OBJECT}")
    if _depth(value) > MOST_NESTED:
        raise ValueError(f"this is nested more than {MOST_NESTED} levels deep; {_OBJECT}")
    return value


def _round_config(value: object) -> object:
    found = _json_object(value)
    assert isinstance(found, dict)  # noqa: S101 it raises for all else
    if len(found) > MOST_CONFIGURED or len(json.dumps(found)) > MOST_CONFIG_BYTES:
        raise ValueError(f"there are more than {MOST_CONFIGURED} names, or more than {MOST_CONFIG_BYTES} bytes")
    return {name: _configured(name, each) for name, each in found.items()}


def _configured(name: str, value: object) -> object:
    """A number, a text or a boolean; or a schedule: what it is from which round of the run on."""
    if not (0 < len(name) <= MAX_FIGURE_NAME and name.isprintable()):
        raise ValueError(f"a name has 1 to {MAX_FIGURE_NAME} printable characters")
    schedule = value if isinstance(value, Mapping) else {"0": value}
    whole = all(re.fullmatch(r"\d{1,9}", str(begin)) for begin in schedule)
    scalars = all(isinstance(each, str | int) or (isinstance(each, float) and math.isfinite(each)) for each in schedule.values())
    if schedule and whole and scalars:
        return {int(begin): each for begin, each in value.items()} if isinstance(value, Mapping) else value
    raise ValueError(
        f"{name}: write a number, a text, true or false; or a schedule by rounds of the run, such as "
        '{"learning_rate": {"0": 0.1, "20": 0.01}}'
    )


def _best_by(value: object) -> object:
    """The metric, and whether its largest value is the best."""
    if not isinstance(value, str):
        return value
    metric, _, end = value.rpartition(":")
    if not metric or end not in ("max", "min"):
        raise ValueError("write a metric and which end is better, such as accuracy:max or loss:min")
    return metric, end == "max"


def _stop_when(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(.*?[^\s<>=])\s*(>=|<=|>|<)\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*", value)
    if match is None:
        raise ValueError("write a metric, a comparison and a number, such as 'accuracy >= 0.95'")
    return match[1], match[2], float(match[3])


def _run_name(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._-]{1,63}", value) is None:
        raise ValueError("a run's name has 1 to 63 of the characters a-z, A-Z, 0-9, '.', '_' and '-'")
    return value


def _depth(value: object) -> int:
    """How many objects and lists lie within each other; counted no further than is allowed."""
    level, depth = [value], 0
    while depth <= MOST_NESTED and (level := [each for each in level if isinstance(each, dict | list)]):
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


_OBJECT = """write one as '{"epochs": 3}', in a shell between single quotes"""


def is_loopback(host: str) -> bool:
    """Whether who listens there is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reveal(secret: SecretStr | None) -> str | None:
    """The secret itself, for who sends or compares it."""
    return None if secret is None else secret.get_secret_value()


def _sendable(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("a secret is sent in a header: one or more visible ASCII characters, no blanks")
    return value


def _of_operators_alone(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if value is not None and value == info.data.get("token"):
        raise ValueError("participants have the same token: operators need a different one")
    return value


def _origins(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = tuple(filter(None, (origin.strip() for origin in value.split(","))))
    if not all(re.fullmatch(r"\*|https?://[a-z0-9.:\[\]-]+", origin) for origin in found):
        raise ValueError("write origins as browsers send them, in lower case and without a path: https://fl.example.org")
    return found


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _listed(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [each for each in value if not re.fullmatch(r"[\w.:*?-]+", each.removesuffix(LOCAL_SERIES), re.ASCII)]:
        raise ValueError(f"{wrong[0]!r} is no pattern: write names with * and ?, such as fedround_*,process_*")
    return value


def _header_fields(text: str) -> Iterator[tuple[str, str]]:
    """The header fields of a list as OpenTelemetry writes it. Raises `ValueError`."""
    for field in text.split(","):
        name, _, value = field.strip().partition("=")
        value = unquote(value.strip())
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip(), re.ASCII) or not re.fullmatch(r"[ -~]+", value):
            raise ValueError("write header fields as name=value with commas between them, such as Authorization=Bearer%20abc")
        yield name.strip(), value


def _headers(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        tuple(_header_fields(value.get_secret_value()))
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, title="duration")]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, title="size")]
Url = Annotated[str, AfterValidator(_url), Field(title="url")]
Place = Annotated[Path | None, Field(title="path")]
Number = Annotated[int, Field(title="number", le=2**32)]
Port = Annotated[int, Field(ge=0, le=65535, title="port")]
Options = Annotated[dict[str, Any], BeforeValidator(_json_object), Field(title="json")]
RoundConfig = Annotated[dict[str, Any], BeforeValidator(_round_config), Field(title="json")]
BestBy = Annotated[tuple[str, bool] | None, BeforeValidator(_best_by), Field(title="metric:max|min")]
StopWhen = Annotated[tuple[str, str, float] | None, BeforeValidator(_stop_when), Field(title="comparison")]
RunName = Annotated[str, AfterValidator(_run_name)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins), Field(title="origins")]
Secret = Annotated[SecretStr | None, AfterValidator(_sendable), Field(title="secret")]
HeaderFields = Annotated[SecretStr | None, AfterValidator(_headers), Field(title="secret")]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_patterns), Field(title="patterns")]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(title="names")]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_hosts), Field(title="hosts")]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower), Field(title="text|json")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower), Field(title="debug|info|warning|error")]


def setting(default: Any, description: str, **constraints: Any) -> Any:
    """A field; its default is what a person would write, and is parsed like what a person wrote."""
    return Field(default, description=description, validate_default=True, **constraints)


class Row(NamedTuple):
    """One setting, as help and documentation show it."""

    name: str
    variable: str
    kind: str
    default: str
    description: str

    def flag(self, *, long: bool = False) -> str:
        """`--port`, or where two services' settings meet, `--coordinator-port`."""
        return "--" + (self.variable.lower() if long else self.name.rstrip("_")).replace("_", "-")


class Settings(BaseSettings):
    """What the three have in common. Frozen; made from keyword arguments, they read nothing else."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments alone: the other sources are `load`'s, which is told the environment and names both ways to set a thing."""
        return (init_settings,)

    prefix: ClassVar[str]
    file_keys: ClassVar[Mapping[str, str]] = {}
    """The field for a key of a 0.8 file."""

    log_format: LogFormat = setting("text", "Format of log lines: plain text, or one JSON object per line.")
    log_level: LogLevel = setting("info", "Minimum level of log lines.")

    @classmethod
    def rows(cls) -> Iterator[Row]:
        """Every setting, first those that only this service has; a secret is followed by the file that may hold it."""
        for name, field in sorted(cls.model_fields.items(), key=lambda item: item[0] not in cls.__annotations__):
            prefix = "FEDROUND" if name.startswith("internal_secret") else cls.prefix
            variable = f"{prefix}_{name.rstrip('_').upper()}"
            default = "" if field.default is None or field.is_required() else str(field.default)
            default = default.lower() if isinstance(field.default, bool) else default
            yield Row(name, variable, field.title or "text", default, field.description or "")
            if field.title == "secret" and f"{name}_file" not in cls.model_fields:
                yield Row(f"{name}_file", f"{variable}_FILE", "path", "", "File that holds this secret.")


class ParticipantSettings(Settings):
    """`PARTICIPANT_*`."""

    prefix = "PARTICIPANT"

    coordinator_url: Url = setting(..., "Required. URL of the coordinator, for example http://coordinator:8081.")
    flower: Annotated[str | None, AfterValidator(_object), Field(title="module:app")] = setting(
        None, "Flower app to run instead of a class, for example my_package.client_app:app."
    )
    class_: Annotated[str | None, AfterValidator(_class), Field(title="module:Class")] = setting(
        None, "Required, unless a Flower app is set. Your participant class, for example my_package.my_module:MyParticipant."
    )
    options: Options = setting("{}", "Keyword arguments for the class, or run config for the Flower app, as a JSON object.")
    local_tensors: Names = setting(
        "",
        "Names of the tensors that never leave the participant, as patterns separated by commas, for example "
        "head.*,*.running_mean. Unset: the `local_tensors` of the class.",
    )
    data_dir: Place = setting(None, "Directory in which local tensors persist across restarts. Unset: they stay in memory.")
    name: Annotated[str, BeforeValidator(_name)] = setting(
        None,
        "Name shown in the coordinator's status and logs. Unset: the host name, with a number for each further participant on "
        "the same host.",
    )
    heartbeat_period: Duration = setting(
        "1s", "Time between heartbeats during a round. With long polls off, it applies outside of rounds too.", gt=0
    )
    long_poll: Duration = setting(
        "15s", "Maximum time that the coordinator holds a heartbeat while there is no news (long poll). 0: no long polls."
    )
    shard: Annotated[tuple[int, int] | None, BeforeValidator(_shard), Field(title="index/count")] = setting(
        None,
        "Shard of the data set that this participant trains on, for example 3/10. Unset: the index of the pod, or an index that "
        "the coordinator assigns.",
    )
    shards: Annotated[Number | None, Field(title="number")] = setting(
        None,
        "Number of shards of a data set that all participants share. The coordinator assigns each shard to one participant. "
        "Unset: each participant has its own data.",
        ge=1,
    )
    aggregator_url: Annotated[Url | None, Field(title="url")] = setting(
        None, "URL of the aggregator. Unset: the URL that the coordinator sends."
    )
    aggregator_allow: Hosts = setting(
        "",
        "Additional aggregator hosts that may receive the token, separated by commas, for example agg.example.org,*.example.net. "
        "*: any host. Hosts related to the coordinator's host need no entry.",
    )
    max_model_size: Size = setting("1GiB", "Maximum size of a global model that the participant accepts.")
    reconnect_max: Duration = setting("1.5s", "Maximum wait between two attempts to reach the coordinator.", gt=0)
    give_up_after: Annotated[float | None, BeforeValidator(_duration_or_never), Field(title="duration|never")] = setting(
        "never", "Exit with code 69 if the coordinator stays unreachable for this long."
    )
    max_failures: Number = setting(5, "Exit with code 70 after this many consecutive failures of the training code.", ge=1)
    confirm_timeout: Duration = setting(
        "15s", "Time to wait for a 0.8 platform to confirm an update before the participant offers it again."
    )
    cancel_timeout: Duration = setting(
        "10s",
        "Kill and restart the training process if it is still running this long after its round was cancelled.",
        gt=0,
    )
    isolation: Isolation = setting(
        "process",
        "Where the class runs. process: in a separate process, which may fork, crash or hang. thread: in this process, which needs "
        "less memory.",
        title="process|thread",
    )
    drain_timeout: Duration = setting("8s", "Maximum time to finish the current round after SIGTERM before abandoning it.")
    after_finish: AfterFinish = setting("exit", "What the participant does when training is complete.", title="exit|wait")
    token: Secret = setting(None, "Bearer token for the coordinator and the aggregator.")
    tls_ca_file: Place = setting(None, "Additional CA certificates (PEM) to trust, beside the public CAs.")
    tls_cert_file: Place = setting(None, "Client certificate (PEM) for servers that request one.")
    tls_key_file: Place = setting(None, "Unencrypted private key (PEM) of that certificate. Unset: it is in the same file.")
    trace_heartbeats: bool = setting(True, "Whether to trace heartbeats outside of rounds.", title="true|false")
    push: Push = setting(
        "none",
        "Push metrics and traces to the coordinator, which forwards them to the operators' collector under the participant's name. "
        "Requires COORDINATOR_OTLP_ENDPOINT on the coordinator, and an individual token or certificate for this participant.",
        title="none|coordinator",
    )
    push_allow: Patterns = setting(
        "fedround, fedround_*, http_client_*, process_*, python_*",
        "Telemetry to push to the coordinator, as patterns separated by commas. A pattern matches names of metrics, and of the "
        "instrumentation scopes of spans (fedround: its own spans). Series of the local model need a pattern such as "
        'fedround_*{source="local"}.',
    )
    ops_bind: str = setting("0.0.0.0", "IP address of the ops port.")  # noqa: S104 a service in a container
    ops_port: Port = setting(8080, "Ops port: health checks, status and metrics. 0: any free port.")
    ops_tls_cert_file: Place = setting(None, "TLS certificate (PEM) of the ops port, reloaded when it changes. Unset: no TLS.")
    ops_tls_key_file: Place = setting(None, "Unencrypted private key (PEM) of that certificate. Unset: it is in the same file.")
    ops_token: Secret = setting(
        None,
        "Bearer token of the ops port. `/status` and `/metrics` require it, and `/metrics` then includes individual weights of the "
        "local model. Unset: both endpoints are open.",
    )

    _differ = field_validator("ops_token")(_of_operators_alone)

    @property
    def made_from(self) -> tuple[str, dict[str, Any]]:
        """The class to make, and its keyword arguments."""
        return (self.class_, self.options) if self.class_ is not None else flower_app(self.flower or "", self.options)


def flower_app(app: str, run_config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class that runs a Flower app, and its keyword arguments."""
    return "fedround.flower:FlowerApp", {"app": app, "run_config": run_config}


class PlatformSettings(Settings):
    """What coordinator and aggregator have in common."""

    token: Secret = setting(
        None, "Bearer token that all participants share. Unset, without other credentials: participants need none."
    )
    tokens_file: Place = setting(None, "File with one participant's name and token per line, reloaded when it changes.")
    tls_cert_file: Place = setting(
        None,
        "TLS certificate (PEM) of the participants' port and the ops port, reloaded when it changes. Unset: no TLS.",
    )
    tls_key_file: Place = setting(None, "Unencrypted private key (PEM) of that certificate. Unset: it is in the same file.")
    tls_client_ca_file: Place = setting(
        None,
        "CA certificates (PEM) that sign participants' certificates. If set, each participant needs a certificate or its own "
        "token, and the certificate's name identifies it.",
    )
    ops_token: Secret = setting(
        None,
        "Bearer token of the ops port; in a browser, the password. Every endpoint except `/livez` and `/readyz` requires it. "
        "Unset: `/status` and `/metrics` are open.",
    )
    internal_secret: Secret = setting(
        None,
        "Secret that coordinator and aggregator share. Unset on loopback: they create one in a file of this user. Required "
        "elsewhere.",
    )
    internal_secret_file: Place = setting(
        None, "File that holds the secret, shared by both. The first service to start creates it if it is missing."
    )

    @field_validator("internal_secret_file")
    @classmethod
    def _either(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("internal_secret") is not None:
            raise ValueError("the secret itself is set too: which of them is meant?")
        return value

    bind: str = setting("0.0.0.0", "IP address of the participants' port and the ops port.")  # noqa: S104 a service in a container
    cors_origins: Origins = setting(
        "",
        "Web origins whose pages may read responses of the participants' port (CORS), separated by commas, for example "
        "https://fl.example.org. `*`: every origin. Unset: none.",
    )
    max_connections: Number = setting(
        0,
        "Maximum number of connections to each port except the ops port. 0: 4096, or fewer if the limit of open files is low.",
        ge=0,
    )
    max_connections_per_address: Number = setting(
        0, "Maximum number of those connections from one IP address. 0: three quarters of the total.", ge=0
    )

    _differ = field_validator("ops_token")(_of_operators_alone)

    @property
    def limits(self) -> tuple[int, int]:
        """How many connections a port may have, and one address of them; 0 is not said."""
        return self.max_connections, self.max_connections_per_address


class CoordinatorSettings(PlatformSettings):
    """`COORDINATOR_*`."""

    prefix = "COORDINATOR"
    file_keys = {
        **{f"federated_learning.{name}": name for name in ("rounds", "participants_ratio", "min_clients", "heartbeat_timeout")},
        "aggregator_url": "aggregator_url",
    }

    run_name: RunName = setting(
        "default", "Name of the run. A new name ends the former run and begins a new one. A name can be used only once."
    )
    rounds: Number = setting(10, "Number of rounds of the run. 0: no limit.", ge=0)
    round_config: RoundConfig = setting(
        "{}",
        "Values for training code, as a JSON object: a number, a text or a boolean for each name, or a schedule by rounds of the "
        'run, such as {"learning_rate": {"0": 0.1, "20": 0.01}}.',
    )
    evaluate_every: Number = setting(
        1,
        "Number of rounds from one evaluation of the global model to the next. The final model is always evaluated. 0: never.",
        ge=0,
    )
    evaluate_ratio: float = setting(
        1.0,
        "Share of the selected participants that evaluate the global model, above 0 and up to 1. Only participants whose class "
        "can evaluate count.",
        gt=0,
        le=1,
        title="ratio",
    )
    evaluate_timeout: Duration = setting(
        "10m", "Maximum time that the run waits at its end for the aggregator to evaluate the final model (AGGREGATOR_EVALUATE)."
    )
    best_by: BestBy = setting(
        None,
        "Evaluation metric that selects the best model, for example accuracy:max or loss:min. Metrics of the aggregator's "
        "evaluation have the prefix `server_`: server_accuracy:max. The aggregator keeps the best model in its data directory. "
        "Unset: it keeps none.",
    )
    patience: Number = setting(0, "Stop after this many consecutive evaluations without a better model. 0: never.", ge=0)
    stop_when: StopWhen = setting(
        None, "Stop when an evaluation metric meets this condition, for example 'accuracy >= 0.95'. Unset: never."
    )
    participants_ratio: float = setting(
        1.0, "Share of the participants that a round selects, above 0 and up to 1.", gt=0, le=1, title="ratio"
    )
    min_clients: Number = setting(1, "Minimum number of registered participants before a round starts.", ge=1)
    heartbeat_timeout: Duration = setting("15s", "Remove a participant that sends no heartbeat for this long.", gt=0)
    round_timeout: Duration = setting(
        "1h", "Time that selected participants have to upload. After that, others replace those that did not.", gt=0
    )
    quorum: Annotated[float | None, AfterValidator(_quorum), Field(title="share|number")] = setting(
        None,
        "Close a round once this many of the selected participants have uploaded: a share such as 0.8 (1: all of them), or a whole "
        "number of at least 2. The minimum is COORDINATOR_PARTICIPANTS_RATIO of COORDINATOR_MIN_CLIENTS. Unset: wait for all, "
        "until the round time-out.",
        gt=0,
        le=2**32,
    )
    grace: Duration = setting(
        "0s", "Time that the other participants have to upload once the quorum is counted. No effect without a quorum."
    )
    overselect: float = setting(
        0.0,
        "Share of participants to select in addition, rounded up: 0.3 selects 30 % more than the ratio. Unless the quorum is set, "
        "it is then the number without them.",
        ge=0,
        le=10,
        title="share",
    )
    seats: Number = setting(
        1, "Maximum number of participants per identity (individual token or certificate). One more replaces the oldest.", ge=1
    )
    shared_seats: Number = setting(
        1000,
        "Maximum number of participants without an individual token or certificate. The coordinator refuses more with 429.",
        ge=1,
    )
    metrics_participants: Number = setting(
        200, "Maximum number of participants that `/metrics` lists by name. Those with a problem come first. 0: none.", ge=0
    )
    aggregator_url: Url = setting("http://localhost:8082", "URL of the aggregator that the coordinator sends to participants.")
    aggregator_internal_url: Url = setting("http://localhost:7082", "URL of the aggregator's internal port.")
    internal_tls_ca_file: Place = setting(
        None, "Additional CA certificates (PEM) to trust for the aggregator's internal port, beside the public CAs."
    )
    internal_tls_cert_file: Place = setting(None, "Client certificate (PEM) for the aggregator's internal port.")
    internal_tls_key_file: Place = setting(
        None, "Unencrypted private key (PEM) of that certificate. Unset: it is in the same file."
    )
    otlp_endpoint: Annotated[Url | None, Field(title="url")] = setting(
        None,
        "OTLP collector (http/protobuf) for the metrics and traces of participants with PARTICIPANT_PUSH=coordinator, for example "
        "http://collector:4318. Unset: the coordinator refuses them.",
    )
    otlp_headers: HeaderFields = setting(
        None, "Header fields for that collector: name=value, separated by commas, for example Authorization=Bearer%20abc."
    )
    data_dir: Place = setting(
        None,
        "Directory in which the run and the registered participants persist across restarts. Unset: they do not persist.",
    )
    port: Port = setting(8081, "Port for participants. 0: any free port.")
    ops_port: Port = setting(9081, "Ops port: health checks, status and metrics. 0: any free port.")

    @property
    def otlp_header_fields(self) -> dict[str, str]:
        """The header fields for the collector."""
        return dict(_header_fields(self.otlp_headers.get_secret_value())) if self.otlp_headers else {}


class AggregatorSettings(PlatformSettings):
    """`AGGREGATOR_*`."""

    prefix = "AGGREGATOR"

    strategy: str = setting(
        "weighted_average",
        "How the aggregator combines updates into a global model: weighted_average, model_sum, trimmed_mean, median, krum, "
        "multi_krum, fedavgm, fedadagrad, fedadam, fedyogi, or module:Class.",
    )
    strategy_options: Options = setting("{}", "Keyword arguments for the strategy, as a JSON object.")
    evaluate: Annotated[str | None, AfterValidator(_function), Field(title="module:function")] = setting(
        None,
        "Function with which the aggregator evaluates each new global model, for example my_package.my_module:evaluate. It runs on "
        "a thread and does not delay rounds. Unset: only participants evaluate.",
    )
    max_model_size: Size = setting("1GiB", "Maximum size of an update, and of the model that it is combined into.")
    max_update_ratio: float = setting(
        100.0,
        "Refuse an update whose change of the model or number of samples exceeds this multiple of those in recent rounds. "
        "0: no limit.",
        ge=0,
        le=1e9,
        title="ratio",
    )
    max_update_norm: Annotated[float | None, Field(title="number")] = setting(
        None, "Refuse an update that changes the model by more than this L2 norm. Unset: no absolute limit.", gt=0, le=1e300
    )
    max_samples: Number = setting(100_000_000, "Refuse an update with more samples than this.", ge=1)
    data_dir: Place = setting(
        None,
        "Directory in which global models persist across restarts. Unset: the aggregator keeps only the newest model, in memory.",
    )
    keep_models: Number = setting(10, "Number of global models that the data directory keeps.", ge=1)
    initial_model: Place = setting(
        None,
        "An .npy or safetensors file with the weights for the first round, if there is no model yet. Unset: the first update "
        "determines names, shapes and dtypes.",
    )
    spool_dir: Place = setting(
        None, "Directory for updates that are still arriving. Unset: the system's directory for temporary files."
    )
    port: Port = setting(8082, "Port for participants. 0: any free port.")
    internal_bind: str = setting("127.0.0.1", "IP address of the internal port.")
    internal_port: Port = setting(7082, "Internal port, for the coordinator. 0: any free port.")
    internal_tls_cert_file: Place = setting(
        None, "TLS certificate (PEM) of the internal port, reloaded when it changes. Unset: no TLS."
    )
    internal_tls_key_file: Place = setting(
        None, "Unencrypted private key (PEM) of that certificate. Unset: it is in the same file."
    )
    internal_tls_client_ca_file: Place = setting(
        None,
        "CA certificates (PEM) that sign the coordinator's certificate. If set, the internal port refuses clients without one.",
    )
    ops_port: Port = setting(9082, "Ops port: health checks, status and metrics. 0: any free port.")

    @field_validator("internal_bind")
    @classmethod
    def _guarded(cls, value: str, info: ValidationInfo) -> str:
        # What was itself refused is absent: that is told already.
        secrets = [info.data.get(name, ...) for name in ("internal_secret", "internal_secret_file")]
        if not is_loopback(value) and secrets == [None, None]:
            raise ValueError("off loopback the internal port needs FEDROUND_INTERNAL_SECRET, or ..._FILE")
        return value
