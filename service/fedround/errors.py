"""Every error that fedround raises, as one tree.

::

    FedroundError
    ├── ConfigurationError        a setting is missing or invalid                        exit 78
    │   └── DataDamaged           a file in a data directory is damaged or missing
    ├── RoundFailed               a round failed repeatedly, in `fedround.testing`
    ├── DataDirectoryHeld         another process holds the data directory               exit 75
    ├── IllegalMove               the state of a core does not allow an event
    ├── UnknownAttempt            the attempt is unknown to the aggregator, or over       (409)
    ├── Unauthorized              the token was revoked during the request                (401)
    ├── NotAdmitted               the aggregator does not know this id and token          (404)
    ├── Forbidden                 the id belongs to another identity                      (403)
    ├── BadTelemetry              telemetry cannot be forwarded               (400, 413, 415)
    ├── NoSeat                    all seats for participants without an identity are taken  (429)
    ├── Late                      the round of the token is over or reassigned            (409)
    ├── TooSlow                   an upload is below the minimum rate                     (408)
    ├── SpoolFull                 the spool has no room for an upload; retry later        (503)
    ├── ExchangeError             an HTTP exchange without a usable response
    │   ├── Unreachable           refused, unknown host, time-out, connection reset, 5xx
    │   │   └── NotConnected      no connection: nothing was sent
    │   ├── Busy                  429 or 503: retry after `retry_after` seconds
    │   ├── BadAnswer             a response outside the protocol
    │   │   └── Intercepted       from a proxy, a login page or another service
    │   ├── Refused               any other 4xx: `status`, `detail`
    │   ├── Untrusted             the aggregator must not receive our token
    │   └── Aborted               this process aborted the transfer
    ├── CoordinatorUnreachable    unreachable for longer than `PARTICIPANT_GIVE_UP_AFTER`  exit 69
    ├── WeightsError              bytes that are not weights, or not an update              (415)
    │   ├── WrongWeights          unexpected shape, dtype or size                           (422)
    │   ├── NotFinite             NaN, infinite, or too large to average                    (422)
    │   ├── Implausible           far more change or samples than other updates             (422)
    │   └── TooLarge              more bytes than allowed                                   (413)
    └── ParticipantError          the participant's code failed                          exit 70
        ├── DeserializationError  in `deserialize_training_input`
        ├── TrainingError         in `train_round`
        └── SerializationError    in `serialize_training_result`, or its result is not an update
"""

from typing import ClassVar


class FedroundError(Exception):
    """The base class of all errors."""

    exit_code: ClassVar[int] = 1
    """Exit code of a process that ends with this error."""


class ConfigurationError(FedroundError):
    """A setting is missing or invalid. The message names it and shows how to set it."""

    exit_code = 78


class DataDamaged(ConfigurationError):
    """A file in a data directory is damaged or missing. fedround neither repairs nor deletes anything by itself."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} in the data directory cannot be used: {why}. Restore it from a backup, or use an empty directory")


class RoundFailed(FedroundError):
    """A round failed repeatedly for a permanent reason. Raised by `fedround.testing`."""

    def __init__(self, round: int, failures: int, reason: str) -> None:
        super().__init__(f"round {round} failed {failures} times: {reason}")
        self.round = round
        self.reason = reason


class DataDirectoryHeld(FedroundError):
    """Another process holds the data directory."""

    exit_code = 75


class IllegalMove(FedroundError):
    """The state of a core does not allow an event. Nothing was changed."""

    def __init__(self, state: object, event: object) -> None:
        super().__init__(f"{event} is not possible in {state}")
        self.state = state
        self.event = event


class UnknownAttempt(FedroundError):
    """The attempt is unknown: the aggregator lost it, or another attempt replaced it."""

    status: ClassVar[int] = 409

    def __init__(self, attempt: str) -> None:
        super().__init__(f"attempt {attempt[:8]} is not the open attempt of the aggregator")
        self.attempt = attempt


class Unauthorized(FedroundError):
    """The token of a request was revoked during the request."""

    status: ClassVar[int] = 401


class NotAdmitted(FedroundError):
    """The aggregator does not know this id and token."""

    status: ClassVar[int] = 404


class Forbidden(FedroundError):
    """The id belongs to an identity that the request does not prove."""

    status: ClassVar[int] = 403

    def __init__(self) -> None:
        super().__init__("this id belongs to another participant: use the token or the certificate with which it registered")


class NoSeat(FedroundError):
    """All seats for participants without an identity are taken."""

    status: ClassVar[int] = 429
    retry_after: ClassVar[float] = 10.0
    """Seconds."""

    def __init__(self, seats: int) -> None:
        super().__init__(
            f"all {seats} seats for participants without an individual token or certificate are taken: "
            "retry later, or raise COORDINATOR_SHARED_SEATS"
        )


class BadTelemetry(FedroundError):
    """Telemetry of a participant that cannot be forwarded. `status` is the HTTP status of the response."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Late(FedroundError):
    """The token was valid, but its round is over or was reassigned."""

    status: ClassVar[int] = 409


class TooSlow(FedroundError):
    """An upload was aborted because it stayed below the minimum rate."""

    status: ClassVar[int] = 408


class SpoolFull(FedroundError):
    """The spool has no room for an upload. Retry later."""

    status: ClassVar[int] = 503
    retry_after: ClassVar[float] = 5.0
    """Seconds."""


class ExchangeError(FedroundError):
    """An HTTP exchange without a usable response."""

    reason: ClassVar[str] = "error"


class Unreachable(ExchangeError):
    """No connection, a time-out, a connection reset, or a 5xx."""

    reason = "unreachable"


class NotConnected(Unreachable):
    """No connection to the peer or its proxy. No byte of the request was sent."""


class Busy(ExchangeError):
    """The peer asks the client to retry later."""

    reason = "busy"
    status: ClassVar[int] = 503

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class BadAnswer(ExchangeError):
    """A response outside the protocol: is this URL a coordinator or an aggregator?"""

    reason = "bad_answer"


class Intercepted(BadAnswer):
    """A response from an intermediary: a proxy, a login page, another service. The peer did not receive the request."""

    reason = "intercepted"


class Refused(ExchangeError):
    """The peer refused the request."""

    reason = "refused"

    def __init__(self, status: int, detail: str, where: str = "") -> None:
        super().__init__(": ".join(filter(None, (where, f"refused with {status}", detail))))
        self.status = status
        self.detail = detail


class Untrusted(ExchangeError):
    """The participant must not send its token to this aggregator. Nothing was sent."""

    reason = "untrusted"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"PARTICIPANT_TOKEN is not sent to {address}, which the coordinator named as its aggregator: "
            "allow that host in PARTICIPANT_AGGREGATOR_ALLOW, or set PARTICIPANT_AGGREGATOR_URL"
        )


class Aborted(ExchangeError):
    """This process aborted the transfer, because it is no longer needed."""

    reason = "aborted"


class CoordinatorUnreachable(FedroundError):
    """The coordinator stayed unreachable for longer than `PARTICIPANT_GIVE_UP_AFTER`."""

    exit_code = 69


class WeightsError(FedroundError, ValueError):
    """Bytes that are not weights. The message gives the reason."""

    status: ClassVar[int] = 415
    """HTTP status of the aggregator's refusal."""


class WrongWeights(WeightsError):
    """Weights of an unexpected shape, dtype or size."""

    status = 422


class NotFinite(WeightsError):
    """Weights with NaN, infinity, or a value too large to average."""

    status = 422


class Implausible(WeightsError):
    """An update whose change of the model or number of samples is far larger than those of other updates."""

    status = 422


class TooLarge(WeightsError):
    """More bytes than allowed."""

    status = 413


class ParticipantError(FedroundError):
    """The participant's code failed. In this process, the original exception is the `__cause__`."""

    exit_code = 70
    trace: str = ""
    """Traceback as text, if the code failed in another process."""


class DeserializationError(ParticipantError):
    """`deserialize_training_input` failed on the global model."""


class TrainingError(ParticipantError):
    """`train_round` failed."""


class SerializationError(ParticipantError):
    """`serialize_training_result` failed, or its result is not an update."""
