"""The settings of a participant."""

import re
import socket
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fedround.common.settings.base import Settings, for_operators_only, setting
from fedround.common.settings.training import Options
from fedround.common.settings.types import (
    App,
    Duration,
    Hosts,
    Names,
    Number,
    Patterns,
    Place,
    Port,
    Secret,
    Size,
    Url,
    importable,
    parse_duration,
)
from fedround.common.wire import NAME_RULE, clean_name, parse_name


class Isolation(StrEnum):
    """Where the user's class runs."""

    PROCESS = "process"
    THREAD = "thread"


class Push(StrEnum):
    """Where a participant pushes telemetry, in addition to the `OTEL_*` variables."""

    NONE = "none"
    COORDINATOR = "coordinator"


class AfterFinish(StrEnum):
    """What a participant does when training is complete."""

    EXIT = "exit"
    WAIT = "wait"


def _duration_or_never(value: object) -> float | None:
    return None if value in (None, "never") else parse_duration(value)


def _shard(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", value)
    if match is None:
        raise ValueError("write a shard as INDEX/COUNT, for instance 3/10")
    return int(match[1]), int(match[2])


def _name(value: str | None) -> str:
    value = clean_name(socket.gethostname()) if value is None else value
    if parse_name(value) is None:
        raise ValueError(NAME_RULE)
    return value


def _class(value: str | None, info: ValidationInfo) -> str | None:
    flower = info.data.get("flower")
    if value is None and flower is None:
        raise PydanticCustomError("missing", "is not set")
    if value is not None and flower is not None:
        raise ValueError("PARTICIPANT_FLOWER (--flower) is set too: set only one of them")
    return value if value is None else importable(value)


class ParticipantSettings(Settings):
    """`PARTICIPANT_*`."""

    prefix = "PARTICIPANT"

    coordinator_url: Url = setting(..., "Required. URL of the coordinator, for example http://coordinator:8081.")
    flower: App = setting(None, "Flower app to run instead of a class, for example my_package.client_app:app.")
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
        "15s", "Time to wait for a 0.8 platform to confirm an update before the participant uploads it again."
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
    after_finish: AfterFinish = setting(
        "exit",
        "What the participant does when training is complete. exit: exit with 0. wait: wait for the next run.",
        title="exit|wait",
    )
    token: Secret = setting(None, "Bearer token for the coordinator and the aggregator.")
    tls_ca_file: Place = setting(None, "CA certificates (PEM) to trust, in addition to the public CAs.")
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

    _differ = field_validator("ops_token")(for_operators_only)

    @property
    def made_from(self) -> tuple[str, dict[str, Any]]:
        """The class that `class_` or `flower` selects, and its keyword arguments."""
        return (self.class_, self.options) if self.class_ is not None else flower_app(self.flower or "", self.options)


def flower_app(app: str, run_config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class that runs a Flower app, and its keyword arguments."""
    return "fedround.flower:FlowerApp", {"app": app, "run_config": run_config}
