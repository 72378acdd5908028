"""The options of `run_participant`: names, defaults, and allowed values."""

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Self, TypedDict

from fedround.common import wire
from fedround.errors import ConfigurationError
from fedround.events import Observer
from fedround.http import hosts
from fedround.participant.moves import Policy


class Options(TypedDict, total=False):
    """The options of `run_participant`. Times are in seconds."""

    name: str
    """Name shown in the coordinator's status and logs. Default: the host name."""
    token: str | None
    """Bearer token for the coordinator and the aggregator."""
    tls_ca_file: str | PathLike[str] | None
    """PEM file with a private CA's certificate, which is trusted besides the public CAs."""
    tls_cert_file: str | PathLike[str] | None
    """PEM file with the client certificate."""
    tls_key_file: str | PathLike[str] | None
    """PEM file with the client certificate's unencrypted private key. Default: the certificate's file."""
    long_poll: float
    """Maximum time that the coordinator holds a heartbeat until there is news; 0: no long polls. Default: 15."""
    shard: tuple[int, int] | None
    """Index and count of this participant's shard of a split data set. Default: see `shards`."""
    shards: int | None
    """Number of shards of a data set that all participants share. The coordinator assigns each to one of them. Default: None."""
    aggregator_url: str | None
    """URL of the aggregator. Default: the one that the coordinator sends."""
    aggregator_allow: Sequence[str]
    """Aggregator hosts that may get the token although they do not share the coordinator's domain, such as `*.example.org`."""
    max_model_size: int
    """Maximum size of a global model, in bytes. Default: 1 GiB."""
    reconnect_max: float
    """Maximum time between two attempts to reach the coordinator. Default: 1.5."""
    give_up_after: float | None
    """Give up if the coordinator stays unreachable for this long. Default: never."""
    max_failures: int
    """Give up after this many consecutive failures of the training code. Default: 1."""
    confirm_timeout: float
    """Maximum time for a 0.8 platform to confirm an update before it is sent again. Default: 15."""
    drain_timeout: float
    """Maximum time to finish the current round after a request to stop. Default: 8."""
    observers: Sequence[Observer]
    """Functions that are called with every fact of `fedround.events`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms(Policy):
    """All options with their defaults. Raises `ConfigurationError` that names all invalid ones."""

    max_failures: int = 1
    name: str = field(default_factory=lambda: wire.clean_name(socket.gethostname()))
    token: str | None = None
    tls_ca_file: str | PathLike[str] | None = None
    tls_cert_file: str | PathLike[str] | None = None
    tls_key_file: str | PathLike[str] | None = None
    shard: tuple[int, int] | None = None
    shards: int | None = None
    aggregator_url: str | None = None
    aggregator_allow: Sequence[str] = ()
    max_model_size: int = 1 << 30
    drain_timeout: float = 8.0
    observers: Sequence[Observer] = ()

    def __post_init__(self) -> None:
        wrong = [f"{name} must be {allowed}" for name, (allowed, fits) in _ALLOWED.items() if not fits(getattr(self, name))]
        if wrong:
            raise ConfigurationError("; ".join(wrong))

    @classmethod
    def of(cls, heartbeat_period: float, options: Options) -> Self:
        """Return the terms for a call of `run_participant`. Raises `ConfigurationError`."""
        known = Options.__annotations__
        if unknown := [name for name in options if name not in known]:
            raise ConfigurationError(f"unknown option {', '.join(unknown)}; the options are {', '.join(known)}")
        return cls(heartbeat_period=heartbeat_period, **options)


def _is_time(value: Any) -> bool:
    return hasattr(value, "__float__") and 0 <= value < math.inf


def _is_shard(value: object) -> bool:
    match value:
        case (int(index), int(count)):
            return index >= 0 and count >= 1
    return value is None


_POSITIVE = "a number of seconds, more than 0", lambda value: _is_time(value) and value > 0
_TIME = "a number of seconds, 0 or more", _is_time
_COUNT = "a whole number, 1 or more", lambda value: hasattr(value, "__index__") and value >= 1

_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "heartbeat_period": _POSITIVE,
    "name": (
        "1 to 63 of the characters a-z, 0-9, '.' and '-'",
        lambda value: isinstance(value, str) and bool(wire.parse_name(value)),
    ),
    "long_poll": _TIME,
    "shard": ("(index, count), whole numbers from 0 and from 1, or None", _is_shard),
    "shards": (f"{_COUNT[0]}, or None", lambda value: value is None or _COUNT[1](value)),
    "aggregator_url": ("as http://host:port or https://host, or None", lambda value: value is None or wire.is_url(value)),
    "aggregator_allow": (
        "a list of host names, each with an optional `*.` prefix",
        lambda value: not isinstance(value, str) and all(isinstance(host, str) and hosts.PATTERN.fullmatch(host) for host in value),
    ),
    "max_model_size": _COUNT,
    "reconnect_max": _POSITIVE,
    "give_up_after": (f"{_TIME[0]}, or None", lambda value: value in (None, math.inf) or _is_time(value)),
    "max_failures": _COUNT,
    "confirm_timeout": _TIME,
    "drain_timeout": _TIME,
    "observers": ("a list of functions", lambda value: isinstance(value, Sequence) and all(map(callable, value))),
}
