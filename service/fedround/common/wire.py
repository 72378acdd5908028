"""The protocol's messages, paths and headers: XAIN FL 0.8, and fedround's optional additions. Both ends use them. No I/O.

`encode` returns the exact bytes of a 0.8 coordinator, with the additions at the end. `decode` accepts the messages of any 0.8
coordinator, ignores unknown fields, and raises `BadAnswer` for everything else.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

from fedround.errors import BadAnswer

RENDEZ_VOUS = "/rendez_vous"
HEARTBEAT = "/heartbeat/{id}"
START_TRAINING = "/start_training/{id}"
LEAVE = "/rendez_vous/{id}"
UPDATE = "/{id}/{token}"
"""Path at the aggregator. GET: the global model. POST: an update."""
OTLP_TRACES, OTLP_METRICS = OTLP = "/v1/traces", "/v1/metrics"
"""Paths at the coordinator. POST: a participant's telemetry, as OTLP over HTTP."""
PROTOBUF = "application/x-protobuf"

PREFER = "Prefer"
PREFERENCE_APPLIED = "Preference-Applied"
PARTICIPANT_NAME = "Fedround-Participant"
ORDINAL = "Fedround-Ordinal"
SHARD = "Fedround-Shard"
"""On a registration: the participant's shard, such as `3/8`. With `Fedround-Shards`: its previous shard."""
SHARDS = "Fedround-Shards"
"""On a registration: the participant asks for one of this many shards."""
UPDATE_OUTCOME = "Fedround-Update"
"""On the response to an upload: an `UpdateOutcome`."""
METRICS = "Fedround-Metrics"
"""On an update: the metrics of training, as JSON."""
EVALUATES = "Fedround-Evaluates"
"""On a registration: the participant can evaluate models."""
EVALUATION = "Fedround-Evaluation"
"""On an update: the participant's evaluation of the global model, before training."""
TROUBLE = "Fedround-Trouble"
"""On a heartbeat: why the participant cannot reach the aggregator, in one line for operators."""
PHASE = "Fedround-Phase"
"""On a heartbeat in a round: the participant's phase, one of `PHASES`."""
PHASES = ("downloading", "evaluating", "training", "uploading", "retrying")

MAX_METRICS_BYTES = 2048
"""Maximum number of bytes of a `Fedround-Metrics` or `Fedround-Evaluation` header."""
MAX_METRICS = 20
MAX_METRIC_NAME = 64
"""Maximum number of metrics in such a header, and of characters in a name. All characters are printable."""
MAX_SHARDS = 10_000
"""Maximum number of shards that a coordinator assigns."""
MAX_NUMBER = 2**53 - 1
"""Maximum whole number in a message: larger ones fit neither all JSON parsers nor metrics and spans."""
MAX_REASON = 200
"""Maximum number of characters of a reason from a peer."""
MAX_HOLD = 25.0
"""Maximum seconds for which the coordinator holds a heartbeat."""
MAX_PROBLEM = 2048
"""Maximum number of bytes of the body with which a participant leaves."""
DRAIN_SECONDS = 2.0
DRAIN_BYTES = 64 << 20
"""Maximum seconds and bytes for which a server reads and discards a refused body, so that the client receives the refusal."""
MIN_RATE = 10_000
MIN_RATE_WINDOW = 30.0
"""Minimum bytes per second of an upload, on average over a window in seconds. The aggregator aborts slower uploads."""

SPEAKS_TLS = "this port speaks TLS: use https://"
"""The response of a TLS port to plain HTTP."""

Scalar = str | int | float | bool
"""A value of the round configuration."""

_NAME = re.compile(r"[a-z0-9.-]{1,63}")
_COUNT = re.compile(r"[0-9]{1,6}")
_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


class HeartbeatState(StrEnum):
    """The instruction in the response to a heartbeat."""

    STAND_BY = "stand_by"
    ROUND = "round"
    FINISH = "finish"
    REJECT = "reject"


class UpdateOutcome(StrEnum):
    """The value of `Fedround-Update` on an upload's 200."""

    COUNTED = "counted"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class RendezVous:
    """The response to a registration. `id` is None when training is complete."""

    id: str | None
    ordinal: int | None = None

    def encode(self) -> bytes:
        return _dump({"id": self.id, "ok": self.id is not None} | _present(ordinal=self.ordinal))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        data = _load(body)
        return cls(id=_uuid(data, "id") if _ok(data) else None, ordinal=_int(data, "ordinal"))


Shard = tuple[int, int]
"""Index of a shard, from 0, and number of shards of the data set."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The shard headers of a registration."""

    count: int
    """Number of shards, at least 2."""
    index: int | None = None
    """Index of the participant's shard; if it `asks` for one, of its previous shard."""
    asks: bool = False
    """Whether the participant asks the coordinator for a shard."""

    def headers(self) -> dict[str, str]:
        own = {} if self.index is None else {SHARD: f"{self.index}/{self.count}"}
        return own | ({SHARDS: str(self.count)} if self.asks else {})

    @classmethod
    def decode(cls, headers: Mapping[str, str]) -> Self | None:
        """Return the claim in the headers; None if they are missing or invalid: the participant trains without a shard."""
        own, asked = _SHARD.fullmatch(headers.get(SHARD, "")), _COUNT.fullmatch(headers.get(SHARDS, ""))
        index, count = (int(own[1]), int(own[2])) if own else (None, 0)
        if asked:
            index, count = index if count == int(asked[0]) else None, int(asked[0])
        valid = 2 <= count <= MAX_SHARDS and (index is None or index < count)
        return cls(count, index, asked is not None) if valid else None


@dataclass(frozen=True, slots=True)
class Run:
    """The run that a round belongs to."""

    id: str
    name: str
    rounds: int = 0
    """Number of its last round plus 1. 0: no limit."""
    config: Mapping[str, Scalar] = field(default_factory=dict)
    """Round configuration: values for training code."""
    evaluate: bool = False
    """Whether to evaluate the global model before training."""
    train: bool = True
    """Whether to train, or only to evaluate."""
    shard: Shard | None = None
    """Shard to train on, for a participant that asked for one."""

    @classmethod
    def decode(cls, data: object) -> Self | None:
        match data:
            case None:
                return None
            case {"id": str(id), "name": str(name), "rounds": int(rounds), "config": dict(config), **more} if (
                0 <= rounds <= MAX_NUMBER and all(isinstance(value, Scalar) for value in config.values())
            ):
                asked = more.get("evaluate") is True, more.get("train") is not False
                return cls(one_line(id), one_line(name), rounds, config, *asked, _shard(more.get("shard")))
        raise BadAnswer("the answer's 'run' is not a run")


@dataclass(frozen=True, slots=True)
class StartTraining:
    """A training request: the aggregator's URL and the upload permission. Both are None for a participant that is not selected."""

    url: str | None
    token: str | None
    traceparent: str | None = None
    tracelink: str | None = None
    """In place of `traceparent` if a round has too many participants for one trace: the participant's own trace links to it."""
    run: Run | None = None

    def encode(self) -> bytes:
        return _dump({"url": self.url, "token": self.token, "ok": self.token is not None} | _additions(self))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        data = _load(body)
        if not _ok(data):
            return cls(url=None, token=None)
        return cls(
            url=_str(data, "url"),
            token=_uuid(data, "token"),
            traceparent=_optional_str(data, "traceparent"),
            tracelink=_optional_str(data, "tracelink"),
            run=Run.decode(data.get("run")),
        )


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The response to a heartbeat. `round` is set only if `state` is ROUND. Only clients that send `Prefer` get further fields."""

    state: HeartbeatState
    round: int | None = None
    url: str | None = None
    token: str | None = None
    traceparent: str | None = None
    tracelink: str | None = None
    counted: int | None = None
    """Last round in which this participant's update was counted."""
    run: Run | None = None

    def encode(self) -> bytes:
        more = _present(url=self.url, token=self.token, counted=self.counted)
        return _dump({"round": self.round, "state": self.state} | more | _additions(self))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        data = _load(body)
        try:
            state = HeartbeatState(_str(data, "state"))
        except ValueError:
            raise BadAnswer(f"the heartbeat's state is {data['state']!r:.40}, which the protocol does not know") from None
        number = _int(data, "round")
        if state is HeartbeatState.ROUND and number is None:
            raise BadAnswer("the heartbeat's state is `round`, but its round is not a number")
        return cls(
            state=state,
            round=number if state is HeartbeatState.ROUND else None,
            url=_optional_str(data, "url"),
            token=_uuid(data, "token") if data.get("token") is not None else None,
            traceparent=_optional_str(data, "traceparent"),
            tracelink=_optional_str(data, "tracelink"),
            counted=_int(data, "counted"),
            run=Run.decode(data.get("run")),
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of a refusal (RFC 9457)."""

    status: int
    title: str
    detail: str = ""

    media_type = "application/problem+json"

    def encode(self) -> bytes:
        return _dump({"title": self.title, "status": self.status} | ({"detail": self.detail} if self.detail else {}))


@dataclass(frozen=True, slots=True)
class Departure:
    """The body of a participant's DELETE (RFC 9457). `reason`: why it failed, in one line; empty: it leaves without a failure."""

    reason: str = ""

    def encode(self) -> bytes:
        return _dump({"title": "Training failed", "detail": one_line(self.reason)})

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Return the departure, with an empty reason if the body is invalid: a participant may always leave."""
        try:
            return cls(one_line(_str(_load(body), "detail")))
        except BadAnswer:
            return cls()


def one_line(text: str) -> str:
    """Return text from a peer for display: on one line, printable, with at most `MAX_REASON` characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON].strip()


def parse_id(text: str) -> str | None:
    """Return the canonical form of a UUID; None if it is invalid. Accept what 0.8 accepts: upper case, no dashes, `urn:uuid:`."""
    try:
        return str(UUID(text)) if text.isascii() else None
    except ValueError:
        return None


NAME_RULE = "a name has 1 to 63 of the characters a-z, 0-9, '.' and '-'"


def parse_name(text: str | None) -> str | None:
    """Return a participant's name, or None if it is missing or not `[a-z0-9.-]{1,63}`."""
    return text if text is not None and _NAME.fullmatch(text) else None


def clean_name(text: str) -> str:
    """Return a valid name of a participant that resembles `text`, such as a host name with capitals or underscores."""
    return re.sub(r"[^a-z0-9.-]", "-", text.lower())[:63] or "participant"


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body, in lower case and without parameters; empty if the headers name none."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def is_url(text: object) -> bool:
    """Return whether this is an http or https URL with a host."""
    if not isinstance(text, str) or re.match(r"https?://[^/?#]", text, re.IGNORECASE) is None:
        return False
    try:
        return urlsplit(text).port != 0
    except ValueError:  # an incomplete IPv6 address, characters that look like others, or a port above 65535
        return False


def parse_prefer_wait(value: str | None) -> float | None:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), or None without a `wait`."""
    for preference in (value or "").split(","):
        name, _, argument = preference.partition("=")
        argument = argument.partition(";")[0].strip().strip('"')
        if name.strip().lower() == "wait" and argument.isascii() and argument.isdigit():
            return float(argument[:9])
    return None


def _dump(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _additions(answer: StartTraining | Heartbeat) -> dict[str, Any]:
    run = None
    if answer.run is not None:
        run = {"id": answer.run.id, "name": answer.run.name, "rounds": answer.run.rounds, "config": answer.run.config}
        run |= ({"evaluate": True} if answer.run.evaluate else {}) | ({} if answer.run.train else {"train": False})
        run |= _present(shard=answer.run.shard)
    return _present(traceparent=answer.traceparent, tracelink=answer.tracelink, run=run)


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _load(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        start = body[:24].decode(errors="replace")  # too short to contain an id or a token
        raise BadAnswer(f"the answer is not a JSON object; it begins with {start!r}: is this URL a coordinator?")
    return data


def _ok(data: dict[str, Any]) -> bool:
    # Do not take the response of another service for a refusal, which ends the participant.
    if not isinstance(data.get("ok"), bool):
        raise BadAnswer("the answer's 'ok' is neither true nor false: is this URL a coordinator?")
    return data["ok"] is True


def _str(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise BadAnswer(f"the answer's {key!r} is not a string")
    return value


def _optional_str(data: dict[str, Any], key: str) -> str | None:
    return None if data.get(key) is None else _str(data, key)


def _uuid(data: dict[str, Any], key: str) -> str:
    value = parse_id(_str(data, key))
    if value is None:
        raise BadAnswer(f"the answer's {key!r} is not a UUID")
    return value


def _int(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_NUMBER):
        raise BadAnswer(f"the answer's {key!r} is not a whole number of at least 0 and at most {MAX_NUMBER}")
    return value


def _shard(value: object) -> Shard | None:
    match value:
        case None:
            return None
        case [int(index), int(count)] if not isinstance(index, bool) and 0 <= index < count <= MAX_SHARDS:
            return index, count
    raise BadAnswer("the answer's 'shard' is not a shard")
