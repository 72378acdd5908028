"""The protocol's messages, paths and headers: XAIN FL 0.8, and our optional additions. One definition for both ends; no I/O.

`encode` gives the very bytes that a 0.8 coordinator sends, with the additions behind them; `decode` accepts what any 0.8
coordinator sends, ignores what it does not know, and raises `BadAnswer` on everything else.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from fedround.errors import BadAnswer

RENDEZ_VOUS = "/rendez_vous"
HEARTBEAT = "/heartbeat/{id}"
START_TRAINING = "/start_training/{id}"
LEAVE = "/rendez_vous/{id}"
UPDATE = "/{id}/{token}"
"""GET: the global model; POST: an update. At the aggregator."""
OTLP_TRACES, OTLP_METRICS = OTLP = "/v1/traces", "/v1/metrics"
"""POST: a participant's telemetry, as OTLP over HTTP has it. At the coordinator."""
PROTOBUF = "application/x-protobuf"

PREFER = "Prefer"
PREFERENCE_APPLIED = "Preference-Applied"
PARTICIPANT_NAME = "Fedround-Participant"
ORDINAL = "Fedround-Ordinal"
SHARD = "Fedround-Shard"
"""On a registration: the participant's shard, as `3/8`. With `Fedround-Shards`: the one that it had before."""
SHARDS = "Fedround-Shards"
"""On a registration: the participant asks for one of so many shards."""
UPDATE_OUTCOME = "Fedround-Update"
METRICS = "Fedround-Metrics"
EVALUATES = "Fedround-Evaluates"
"""On a registration: the participant can evaluate models."""
EVALUATION = "Fedround-Evaluation"
"""On an update: what the global model was found to be like before training."""
TROUBLE = "Fedround-Trouble"
"""On a heartbeat: what keeps the participant from the aggregator, one line for people."""
PHASE = "Fedround-Phase"
"""On a heartbeat in a round: what the participant does, one of `PHASES`."""
PHASES = ("downloading", "evaluating", "training", "uploading", "retrying")

MAX_METRICS = 2048
"""Bytes of a `Fedround-Metrics` header."""
MAX_FIGURES = 20
MAX_FIGURE_NAME = 64
"""How many figures are in it, and how many characters, all of them printable, are in the name of each."""
MAX_SHARDS = 10_000
"""Shards that a coordinator gives out at most."""
MAX_REASON = 200
"""Characters of a reason that one peer gives another."""
MAX_HOLD = 25.0
"""Seconds for which a heartbeat is held at the most."""
MAX_PROBLEM = 2048
"""Bytes of the problem with which a participant leaves."""
DRAIN_SECONDS = 2.0
DRAIN_BYTES = 64 << 20
"""How much a server reads on and discards after a refusal, so that the reason arrives."""
MIN_RATE = 10_000
"""Bytes per second below which an upload is given up ..."""
MIN_RATE_WINDOW = 30.0
"""... over so many seconds."""

SPEAKS_TLS = "this port speaks TLS: use https://"
"""What a port with TLS answers to plain HTTP."""

Scalar = str | int | float | bool
"""A value of the round configuration."""

_NAME = re.compile(r"[a-z0-9.-]{1,63}")
_COUNT = re.compile(r"[0-9]{1,6}")
_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


class HeartbeatState(StrEnum):
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
    """`id` is None when training is complete."""

    id: str | None
    ordinal: int | None = None

    def encode(self) -> bytes:
        return _dump({"id": self.id, "ok": self.id is not None} | _present(ordinal=self.ordinal))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        data = _load(body)
        return cls(id=_uuid(data, "id") if _ok(data) else None, ordinal=_int(data, "ordinal"))


Shard = tuple[int, int]
"""Index, from 0, and number of the parts that a data set is split into."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a registration says about shards."""

    count: int
    """The number of shards, 2 or more: a data set in one part is not split."""
    index: int | None = None
    """The participant's shard; where it `asks`, the one that it had before."""
    asks: bool = False
    """The participant trains whichever shard the coordinator gives it."""

    def headers(self) -> dict[str, str]:
        own = {} if self.index is None else {SHARD: f"{self.index}/{self.count}"}
        return own | ({SHARDS: str(self.count)} if self.asks else {})

    @classmethod
    def decode(cls, headers: Mapping[str, str]) -> Self | None:
        """Anything that is no claim is none: the participant trains all the same."""
        own, asked = _SHARD.fullmatch(headers.get(SHARD, "")), _COUNT.fullmatch(headers.get(SHARDS, ""))
        index, count = (int(own[1]), int(own[2])) if own else (None, 0)
        if asked:
            index, count = index if count == int(asked[0]) else None, int(asked[0])
        fits = 2 <= count <= MAX_SHARDS and (index is None or index < count)
        return cls(count, index, asked is not None) if fits else None


@dataclass(frozen=True, slots=True)
class Run:
    """The run that a round belongs to."""

    id: str
    name: str
    rounds: int = 0
    """The number of its last round plus 1; 0: the run does not end."""
    config: Mapping[str, Scalar] = field(default_factory=dict)
    """The round configuration: what the coordinator tells training code."""
    evaluate: bool = False
    """Evaluate the global model before training."""
    train: bool = True
    """Train, and not only evaluate."""
    shard: Shard | None = None
    """The shard to train on, for a participant that asked for one."""

    @classmethod
    def decode(cls, data: object) -> Self | None:
        match data:
            case None:
                return None
            case {"id": str(id), "name": str(name), "rounds": int(rounds), "config": dict(config), **more} if rounds >= 0 and all(
                isinstance(value, Scalar) for value in config.values()
            ):
                asked = more.get("evaluate") is True, more.get("train") is not False
                return cls(one_line(id), one_line(name), rounds, config, *asked, _shard(more.get("shard")))
        raise BadAnswer("the answer's 'run' is no run")


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Where and with which token to fetch the model and deliver the update; both None when the order was refused."""

    url: str | None
    token: str | None
    traceparent: str | None = None
    tracelink: str | None = None
    """As `traceparent`, of a round with too many participants for one trace: the own one is only linked to it."""
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
    """`round` is set exactly when `state` is ROUND. The rest are additions, sent to who asked with `Prefer`."""

    state: HeartbeatState
    round: int | None = None
    url: str | None = None
    token: str | None = None
    traceparent: str | None = None
    tracelink: str | None = None
    counted: int | None = None
    """The last round in which this participant's update was counted."""
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
            raise BadAnswer(f"the heartbeat's state is {data['state']!r}, which the protocol does not know") from None
        number = _int(data, "round")
        if state is HeartbeatState.ROUND and number is None:
            raise BadAnswer("the heartbeat says `round` without a number")
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
    """A refusal's body (RFC 9457)."""

    status: int
    title: str
    detail: str = ""

    media_type = "application/problem+json"

    def encode(self) -> bytes:
        return _dump({"title": self.title, "status": self.status} | ({"detail": self.detail} if self.detail else {}))


@dataclass(frozen=True, slots=True)
class Departure:
    """The body of a participant's DELETE (RFC 9457): why it leaves, one line for people. Empty where it did not fail."""

    reason: str = ""

    def encode(self) -> bytes:
        return _dump({"title": "Training failed", "detail": one_line(self.reason)})

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Anything but a reason is none: a participant may leave whatever it says."""
        try:
            return cls(one_line(_str(_load(body), "detail")))
        except BadAnswer:
            return cls()


def one_line(text: str) -> str:
    """Return `text` as a peer may send it to be shown: printable characters, 200 at most."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON].strip()


def parse_id(text: str) -> str | None:
    """The canonical form of a UUID, as tolerant as 0.8 (upper case, no dashes, `urn:uuid:`); None when it is none."""
    try:
        return str(UUID(text)) if text.isascii() else None
    except ValueError:
        return None


def parse_name(text: str | None) -> str | None:
    """A participant's name, or None where it is missing or not `[a-z0-9.-]{1,63}`."""
    return text if text is not None and _NAME.fullmatch(text) else None


def clean_name(text: str) -> str:
    """The nearest valid participant name, for host names with capitals or underscores."""
    return re.sub(r"[^a-z0-9.-]", "-", text.lower())[:63] or "participant"


def is_url(text: object) -> bool:
    """Whether somebody could be asked there."""
    return isinstance(text, str) and re.match(r"https?://[^/?#]", text) is not None


def parse_prefer_wait(value: str | None) -> float | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), or None where the header asks for no wait."""
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
        # Few enough characters that no id or token of a cut answer is among them.
        start = body[:24].decode(errors="replace")
        raise BadAnswer(f"the answer is no JSON object but begins with {start!r}: is this URL a coordinator?")
    return data


def _ok(data: dict[str, Any]) -> bool:
    # Some other service's object must not be taken for a refusal: it would end a participant.
    if not isinstance(data.get("ok"), bool):
        raise BadAnswer("the answer's 'ok' is neither true nor false: is this URL a coordinator?")
    return data["ok"] is True


def _str(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise BadAnswer(f"the answer's {key!r} is no text")
    return value


def _optional_str(data: dict[str, Any], key: str) -> str | None:
    return None if data.get(key) is None else _str(data, key)


def _uuid(data: dict[str, Any], key: str) -> str:
    value = parse_id(_str(data, key))
    if value is None:
        raise BadAnswer(f"the answer's {key!r} is no UUID")
    return value


def _int(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise BadAnswer(f"the answer's {key!r} is no number from 0")
    return value


def _shard(value: object) -> Shard | None:
    match value:
        case None:
            return None
        case [int(index), int(count)] if 0 <= index < count:
            return index, count
    raise BadAnswer("the answer's 'shard' is no shard")
