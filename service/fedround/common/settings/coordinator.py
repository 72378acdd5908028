"""The settings of a coordinator."""

from typing import Annotated, ClassVar

from pydantic import Field

from fedround.common.settings.base import setting
from fedround.common.settings.platform import PlatformSettings
from fedround.common.settings.training import BestBy, Quorum, RoundConfig, RunName, StopWhen
from fedround.common.settings.types import Duration, HeaderFields, Label, Number, Place, Port, Url, header_fields


class CoordinatorSettings(PlatformSettings):
    """`COORDINATOR_*`."""

    prefix = "COORDINATOR"
    file_keys: ClassVar = {
        **{f"federated_learning.{name}": name for name in ("rounds", "participants_ratio", "min_clients", "heartbeat_timeout")},
        "aggregator_url": "aggregator_url",
    }

    run_name: RunName = setting(
        "default", "Name of the run. A new name ends the previous run and begins a new one. A name can be used only once."
    )
    rounds: Number = setting(10, "Number of rounds of the run. 0: no limit.", ge=0)
    round_config: RoundConfig = setting(
        "{}",
        "Values for training code, as a JSON object: a number, a text or a boolean for each name, or a schedule by rounds of the "
        'run, such as {"learning_rate": {"0": 0.1, "20": 0.01}}.',
    )
    evaluate_every: Number = setting(
        1,
        "Number of rounds from one evaluation of the global model by participants to the next. They also evaluate the final model. "
        "0: they evaluate no model.",
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
        "1h", "Time that selected participants have to upload. After that, the coordinator selects others in their place.", gt=0
    )
    quorum: Quorum = setting(
        None,
        "Close a round once this many of the selected participants have uploaded: a share such as 0.8 (1: all of them), or a whole "
        "number of at least 2. It is never below COORDINATOR_PARTICIPANTS_RATIO x COORDINATOR_MIN_CLIENTS. Unset: wait for all, "
        "until the round time-out.",
        gt=0,
        le=2**32,
    )
    grace: Duration = setting(
        "0s", "Time that the other participants have to upload once the quorum is counted. No effect without a quorum."
    )
    overselect: float = setting(
        0.0,
        "Share of participants to select in addition, rounded up: 0.3 selects 30 % more than the ratio. If COORDINATOR_QUORUM is "
        "unset, the quorum is the number of participants without the additional ones.",
        ge=0,
        le=10,
        title="share",
    )
    seats: Number = setting(
        1, "Maximum number of participants per identity (individual token or certificate). A new one replaces the oldest.", ge=1
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
        None, "CA certificates (PEM) to trust for the aggregator's internal port, in addition to the public CAs."
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
    otlp_namespace: Label = setting(
        None,
        "Label `namespace` of the metrics that the coordinator forwards. Set it to the `namespace` that the "
        "coordinator's metrics have in Prometheus: dashboards and alerts group a federation by this label. Unset: no label.",
    )
    data_dir: Place = setting(
        None,
        "Directory in which the run and the registered participants persist across restarts. Unset: they do not persist.",
    )
    port: Port = setting(8081, "Port for participants. 0: any free port.")
    ops_port: Port = setting(9081, "Ops port: health checks, status and metrics. 0: any free port.")

    @property
    def otlp_header_fields(self) -> dict[str, str]:
        """The header fields for the OTLP collector."""
        return dict(header_fields(self.otlp_headers.get_secret_value())) if self.otlp_headers else {}
