"""The settings that coordinator and aggregator have in common."""

from pathlib import Path

from pydantic import ValidationInfo, field_validator

from fedround.common.settings.base import Settings, for_operators_only, setting
from fedround.common.settings.types import Number, Origins, Place, Secret


class PlatformSettings(Settings):
    """The settings that coordinator and aggregator share."""

    token: Secret = setting(
        None, "Bearer token that all participants share. If no token, tokens file or client CA is set, participants need none."
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
        "Secret that coordinator and aggregator share. Unset: on loopback, they create one in a file of this user; elsewhere it is "
        "required.",
    )
    internal_secret_file: Place = setting(
        None, "File that holds the secret, shared by both. The first service to start creates it if it is missing."
    )

    @field_validator("internal_secret_file")
    @classmethod
    def _either(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("internal_secret") is not None:
            raise ValueError("the secret itself is set too: set only one of them")
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

    _differ = field_validator("ops_token")(for_operators_only)

    @property
    def limits(self) -> tuple[int, int]:
        """Maximum number of connections to a port, and from one address. 0: the default, from the limit of open files."""
        return self.max_connections, self.max_connections_per_address
