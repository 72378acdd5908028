"""The lifecycle's words: its policy, states, outcomes, orders, events and commands, as frozen values.

Each answer bears the id or the order that it belongs to, so that one that comes late is known as such. None of them bears weights:
those stay with the runtime. Ids and tokens are left out of every `repr`.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fedround.common import wire
from fedround.common.wire import UpdateOutcome


class State(StrEnum):
    REGISTERING = "registering"
    WAITING = "waiting"
    TRAINING = "training"
    CONFIRMING = "confirming"
    FINISHED = "finished"
    STOPPED = "stopped"


class Outcome(StrEnum):
    """How a round ended."""

    COMPLETED = "completed"
    EVALUATED = "evaluated"
    UNCONFIRMED = "unconfirmed"
    FAILED = "failed"
    REFUSED = "refused"
    ABANDONED = "abandoned"


class Reason(StrEnum):
    """Why the participant exits."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    GAVE_UP = "gave_up"


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds. `long_poll` 0: heartbeats are never held. `give_up_after` None, `cancel_timeout` inf: never."""

    heartbeat_period: float = 1.0
    long_poll: float = 15.0
    reconnect_max: float = 1.5
    give_up_after: float | None = None
    max_failures: int = 5
    confirm_timeout: float = 15.0
    cancel_timeout: float = math.inf
    exit_after_finish: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """The order to train a round. Its `serial` tells it from all others, so that late answers are known."""

    serial: int
    id: str = field(repr=False)
    round: int
    url: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    run: wire.Run | None = None


# Events: what has happened


@dataclass(frozen=True, slots=True)
class Joined:
    id: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """Training is complete."""


@dataclass(frozen=True, slots=True)
class RegisterFailed:
    """`reason` is one of few words, `detail` for people."""

    reason: str
    retry_after: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HeartbeatAnswered:
    id: str = field(repr=False)
    answer: wire.Heartbeat = field(repr=False)


@dataclass(frozen=True, slots=True)
class HeartbeatFailed:
    id: str = field(repr=False)
    reason: str
    retry_after: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StartTrainingAnswered:
    order: Order
    answer: wire.StartTraining = field(repr=False)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """`modified` is false when the model is still the one that the order's etag names."""

    order: Order
    etag: str | None
    modified: bool = True


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """The global model is larger than we take, or its aggregator is not trusted."""

    order: Order
    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The update is ready, and kept by the shell."""

    order: Order


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    order: Order
    reason: str


@dataclass(frozen=True, slots=True)
class UploadAnswered:
    """`outcome` is None where the peer says nothing, as 0.8."""

    order: Order
    outcome: UpdateOutcome | None


@dataclass(frozen=True, slots=True)
class TransferRefused:
    """start_training, download or upload was answered with a 4xx."""

    order: Order
    status: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """start_training, download or upload brought no answer, or no usable one. `sent` is false where there was no connection."""

    order: Order
    reason: str
    retry_after: float | None = None
    sent: bool = True

    @property
    def may_have_arrived(self) -> bool:
        return self.sent and self.retry_after is None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """`next_deadline` has come."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A round may be finished if that takes no longer than `within` seconds."""

    within: float = 0.0


TransferEvent = StartTrainingAnswered | Downloaded | ModelRefused | UploadAnswered | TransferRefused | TransferFailed
ContactEvent = Joined | JoinRefused | RegisterFailed | HeartbeatAnswered | HeartbeatFailed
Event = TransferEvent | ContactEvent | Trained | TrainingFailed | TimerFired | StopRequested


# Commands: what to do


@dataclass(frozen=True, slots=True)
class Register:
    """Ask for an id."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`wait`: how long the coordinator may hold the answer, in seconds."""

    id: str = field(repr=False)
    wait: float


@dataclass(frozen=True, slots=True)
class Leave:
    """`at_once`: do not wait for the heartbeat under way, which may be held. `reason`: why, where the participant failed."""

    id: str = field(repr=False)
    at_once: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartTraining:
    order: Order


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch the global model, if it is another than `etag`."""

    order: Order
    etag: str | None


@dataclass(frozen=True, slots=True)
class Train:
    """Have the downloaded model trained, and keep the update."""

    order: Order


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the update that is kept."""

    order: Order


@dataclass(frozen=True, slots=True)
class Forfeit:
    """Tell a 0.8 platform that no update will come: send it an empty one."""

    order: Order


@dataclass(frozen=True, slots=True)
class Hurry:
    """Tell user code to come to an end; what it returns is still wanted."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """What is under way for the round is not wanted any more: tell user code, cut the transfer."""


@dataclass(frozen=True, slots=True)
class Kill:
    """User code was cancelled and does not return: end it by force. It fails because of that."""


@dataclass(frozen=True, slots=True)
class ThrowAway:
    """Forget the update that is kept."""


@dataclass(frozen=True, slots=True)
class Exit:
    """`at_once`: do not even wait until the coordinator has heard that we leave."""

    reason: Reason
    at_once: bool = False


Transfer = StartTraining | Download | Upload
Command = Register | Heartbeat | Leave | Transfer | Train | Forfeit | Hurry | Cancel | Kill | ThrowAway | Exit
