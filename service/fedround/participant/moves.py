"""The values of the lifecycle: policy, states, outcomes, training requests, events and commands.

Each response has its id or its training request, so a late one can be recognised. Weights stay with the runtime. Every `repr` omits
ids and tokens.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fedround.common import wire
from fedround.common.wire import UpdateOutcome


class State(StrEnum):
    """The state of a participant."""

    REGISTERING = "registering"
    WAITING = "waiting"
    TRAINING = "training"
    CONFIRMING = "confirming"
    FINISHED = "finished"
    STOPPED = "stopped"


class Outcome(StrEnum):
    """The outcome of a round."""

    COMPLETED = "completed"
    EVALUATED = "evaluated"
    UNCONFIRMED = "unconfirmed"
    FAILED = "failed"
    REFUSED = "refused"
    ABANDONED = "abandoned"


class Reason(StrEnum):
    """The reason of an exit."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    GAVE_UP = "gave_up"


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and times in seconds. `long_poll` 0: no long polls. `give_up_after` None, `cancel_timeout` inf: never."""

    heartbeat_period: float = 1.0
    long_poll: float = 15.0
    reconnect_max: float = 1.5
    give_up_after: float | None = None
    max_failures: int = 5
    confirm_timeout: float = 15.0
    cancel_timeout: float = math.inf
    exit_after_finish: bool = True


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """A training request. Its unique `serial` identifies late responses."""

    serial: int
    id: str = field(repr=False)
    round: int
    url: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    run: wire.Run | None = None


# Events: what has happened


@dataclass(frozen=True, slots=True)
class Registered:
    id: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegistrationRefused:
    """Training is complete."""


@dataclass(frozen=True, slots=True)
class RegistrationFailed:
    """`reason` comes from a small set of words; `detail` is for logs."""

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
    request: TrainingRequest
    answer: wire.StartTraining = field(repr=False)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """`modified` is false if the model still has the ETag of the download."""

    request: TrainingRequest
    etag: str | None
    modified: bool = True


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """The global model exceeds the size limit, or its aggregator is not trusted."""

    request: TrainingRequest
    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The update is ready. The shell stores it."""

    request: TrainingRequest


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    request: TrainingRequest
    reason: str


@dataclass(frozen=True, slots=True)
class UploadAnswered:
    """`outcome` is None if the aggregator sends none, like 0.8."""

    request: TrainingRequest
    outcome: UpdateOutcome | None


@dataclass(frozen=True, slots=True)
class TransferRefused:
    """start_training, download or upload was answered with a 4xx."""

    request: TrainingRequest
    status: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """start_training, download or upload got no usable response. `sent` is false if there was no connection."""

    request: TrainingRequest
    reason: str
    retry_after: float | None = None
    sent: bool = True

    @property
    def may_have_arrived(self) -> bool:
        return self.sent and self.retry_after is None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """`next_deadline` has passed."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A request to stop. The participant may finish a round within `within` seconds."""

    within: float = 0.0


TransferEvent = StartTrainingAnswered | Downloaded | ModelRefused | UploadAnswered | TransferRefused | TransferFailed
ContactEvent = Registered | RegistrationRefused | RegistrationFailed | HeartbeatAnswered | HeartbeatFailed
Event = TransferEvent | ContactEvent | Trained | TrainingFailed | TimerFired | StopRequested


# Commands: what to do


@dataclass(frozen=True, slots=True)
class Register:
    """Register with the coordinator."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`wait`: maximum seconds until the coordinator responds."""

    id: str = field(repr=False)
    wait: float


@dataclass(frozen=True, slots=True)
class Leave:
    """`immediately`: do not wait for the heartbeat under way, maybe a long poll. `reason`: the participant's failure, if any."""

    id: str = field(repr=False)
    immediately: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartTraining:
    request: TrainingRequest


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch the global model unless its ETag is still `etag`."""

    request: TrainingRequest
    etag: str | None


@dataclass(frozen=True, slots=True)
class Train:
    """Train the downloaded model, and store the update."""

    request: TrainingRequest


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the stored update."""

    request: TrainingRequest


@dataclass(frozen=True, slots=True)
class Forfeit:
    """Send an empty update to a 0.8 platform, so that it stops waiting."""

    request: TrainingRequest


@dataclass(frozen=True, slots=True)
class Hurry:
    """Ask user code to return soon. Its result is still needed."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the round: notify user code, and abort the transfer. Their results are not needed."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill cancelled user code that does not return. The training fails."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Discard the stored update."""


@dataclass(frozen=True, slots=True)
class Exit:
    """`immediately`: do not wait for the response to `Leave`."""

    reason: Reason
    immediately: bool = False


Transfer = StartTraining | Download | Upload
Command = Register | Heartbeat | Leave | Transfer | Train | Forfeit | Hurry | Cancel | Kill | Discard | Exit
