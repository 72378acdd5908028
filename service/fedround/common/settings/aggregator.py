"""The settings of an aggregator."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from fedround.common.settings.base import setting
from fedround.common.settings.platform import PlatformSettings
from fedround.common.settings.training import Options
from fedround.common.settings.types import Function, Number, Place, Port, Size
from fedround.http.hosts import is_loopback


class AggregatorSettings(PlatformSettings):
    """`AGGREGATOR_*`."""

    prefix = "AGGREGATOR"

    strategy: str = setting(
        "weighted_average",
        "How the aggregator combines updates into a global model: weighted_average (fedavg), model_sum, trimmed_mean, median, "
        "krum, multi_krum, fedavgm, fedadagrad, fedadam, fedyogi, or module:Class.",
    )
    strategy_options: Options = setting("{}", "Keyword arguments for the strategy, as a JSON object.")
    evaluate: Function = setting(
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
        # A field that is itself invalid is absent here, and reported already.
        secrets = [info.data.get(name, ...) for name in ("internal_secret", "internal_secret_file")]
        if not is_loopback(value) and secrets == [None, None]:
            raise ValueError("off loopback the internal port needs FEDROUND_INTERNAL_SECRET, or ..._FILE")
        return value
