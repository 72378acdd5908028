"""Every error that fedround raises, as one tree.

::

    FedroundError
    ├── ConfigurationError        a setting is missing or wrong                          exit 78
    │   └── DataDamaged           a file in a data directory is not what was written
    ├── RoundFailed               a round fails again and again, in a test's platform
    ├── DataDirectoryHeld         another process holds the data directory               exit 75
    ├── IllegalMove               a core was given an event that its state does not allow
    ├── UnknownAttempt            the books know no such attempt, or know it as over      (409)
    ├── Unauthorized              a token that was revoked during the request             (401)
    ├── NotAdmitted               no such id and token at the aggregator                  (404)
    ├── Forbidden                 the id belongs to another proved identity               (403)
    ├── BadTelemetry              telemetry that cannot be forwarded          (400, 413, 415)
    ├── NoSeat                    all seats for participants without an identity are taken  (429)
    ├── Late                      a token whose round is over, or was given away          (409)
    ├── TooSlow                   an upload below the minimum rate                        (408)
    ├── SpoolFull                 no room for an upload; later there may be               (503)
    ├── ExchangeError             an HTTP exchange that brought no usable answer
    │   ├── Unreachable           refused, no such host, time-out, cut, 5xx
    │   │   └── NotConnected      there was no connection: nothing was sent
    │   ├── Busy                  429 or 503: try again after `retry_after` seconds
    │   ├── BadAnswer             an answer that is not the protocol's
    │   │   └── Intercepted       a proxy's, a log-in page's, another service's
    │   ├── Refused               any other 4xx: `status`, `detail`
    │   ├── Untrusted             an aggregator that must not have our token
    │   └── Aborted               we cut the transfer ourselves
    ├── CoordinatorUnreachable    it stayed away for longer than we were told to wait    exit 69
    ├── WeightsError              bytes that are no weights, or no update                   (415)
    │   ├── WrongWeights          not the shape, dtype or size that is expected             (422)
    │   ├── NotFinite             NaN, infinite, or too large to be averaged                (422)
    │   ├── Implausible           a change or a sample count out of all proportion          (422)
    │   └── TooLarge              more bytes than are allowed                               (413)
    └── ParticipantError          the participant's own code failed                      exit 70
        ├── DeserializationError  in `deserialize_training_input`
        ├── TrainingError         in `train_round`
        └── SerializationError    in `serialize_training_result`, or its result is no update
"""

from typing import ClassVar


class FedroundError(Exception):
    """The root of the tree."""

    exit_code: ClassVar[int] = 1
    """With which a process ends that such an error ends."""


class ConfigurationError(FedroundError):
    """A setting is missing or wrong; the message names it and says how to set it."""

    exit_code = 78


class DataDamaged(ConfigurationError):
    """A file in a data directory is not what was written. Nothing is repaired or thrown away without being asked."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} in the data directory cannot be used: {why}. Put a copy back, or point to an empty directory")


class RoundFailed(FedroundError):
    """A round failed again and again for a reason that does not pass by itself. Raised by `fedround.testing`."""

    def __init__(self, round: int, failures: int, reason: str) -> None:
        super().__init__(f"round {round} failed {failures} times: {reason}")
        self.round = round
        self.reason = reason


class DataDirectoryHeld(FedroundError):
    """Another process has held the data directory for too long."""

    exit_code = 75


class IllegalMove(FedroundError):
    """A core was given an event that its state does not allow; nothing was changed."""

    def __init__(self, state: object, event: object) -> None:
        super().__init__(f"{event} is not possible in {state}")
        self.state = state
        self.event = event


class UnknownAttempt(FedroundError):
    """The books know no such attempt: the aggregator lost it, or another took its place."""

    status: ClassVar[int] = 409

    def __init__(self, attempt: str) -> None:
        super().__init__(f"attempt {attempt[:8]} is not the one the books are open for")
        self.attempt = attempt


class Unauthorized(FedroundError):
    """The token of a request was revoked while the request was under way."""

    status: ClassVar[int] = 401


class NotAdmitted(FedroundError):
    """The aggregator knows no such id and token."""

    status: ClassVar[int] = 404


class Forbidden(FedroundError):
    """The id belongs to a proved identity, and the request comes from another one, or proves none."""

    status: ClassVar[int] = 403

    def __init__(self) -> None:
        super().__init__("this id belongs to another participant: use the token or the certificate with which it registered")


class NoSeat(FedroundError):
    """As many participants without a proved identity are present as may be."""

    status: ClassVar[int] = 429
    retry_after: ClassVar[float] = 10.0
    """Seconds."""

    def __init__(self, seats: int) -> None:
        super().__init__(
            f"all {seats} seats of participants without a token or certificate of their own are taken: "
            "try again later, or raise COORDINATOR_SHARED_SEATS"
        )


class BadTelemetry(FedroundError):
    """What a participant pushed cannot be passed on. `status`: of the answer."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Late(FedroundError):
    """The token was good once, but its round is over or was given to others."""

    status: ClassVar[int] = 409


class TooSlow(FedroundError):
    """An upload that stayed below the minimum rate and was given up."""

    status: ClassVar[int] = 408


class SpoolFull(FedroundError):
    """The spool has no room for an upload; it may have later."""

    status: ClassVar[int] = 503


class ExchangeError(FedroundError):
    """An HTTP exchange that brought no usable answer."""

    reason: ClassVar[str] = "error"


class Unreachable(ExchangeError):
    """No connection, no answer in time, a cut connection, or a 5xx."""

    reason = "unreachable"


class NotConnected(Unreachable):
    """No connection to the peer, or to the proxy before it: no byte of the request was sent."""


class Busy(ExchangeError):
    """The peer asks us to come back later."""

    reason = "busy"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class BadAnswer(ExchangeError):
    """The peer's answer is not in the protocol: is this URL a coordinator or an aggregator?"""

    reason = "bad_answer"


class Intercepted(BadAnswer):
    """Something in between answered: a proxy, a log-in page, another service. The peer itself did not see the request."""

    reason = "intercepted"


class Refused(ExchangeError):
    """The peer understood and said no."""

    reason = "refused"

    def __init__(self, status: int, detail: str, where: str = "") -> None:
        super().__init__(": ".join(filter(None, (where, f"refused with {status}", detail))))
        self.status = status
        self.detail = detail


class Untrusted(ExchangeError):
    """The participant's token is not for this aggregator; nothing was sent."""

    reason = "untrusted"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"PARTICIPANT_TOKEN is not sent to {address}, which the coordinator named as its aggregator: "
            "allow that host in PARTICIPANT_AGGREGATOR_ALLOW, or set PARTICIPANT_AGGREGATOR_URL"
        )


class Aborted(ExchangeError):
    """The transfer was cut from our side: nobody wants it any more."""

    reason = "aborted"


class CoordinatorUnreachable(FedroundError):
    """The coordinator stayed away for longer than `PARTICIPANT_GIVE_UP_AFTER`."""

    exit_code = 69


class WeightsError(FedroundError, ValueError):
    """Bytes that are no weights: the message says what is wrong with them."""

    status: ClassVar[int] = 415
    """The HTTP status with which an aggregator refuses them."""


class WrongWeights(WeightsError):
    """Weights, but not of the shape, dtype or size that is expected."""

    status = 422


class NotFinite(WeightsError):
    """Weights with NaN, infinity, or a value too large to be averaged."""

    status = 422


class Implausible(WeightsError):
    """A change of the model, or a sample count, that is out of proportion to what other updates have."""

    status = 422


class TooLarge(WeightsError):
    """More bytes than are allowed."""

    status = 413


class ParticipantError(FedroundError):
    """The participant's own code failed; raised `from` what it raised, where that happened in this process."""

    exit_code = 70
    trace: str = ""
    """The traceback as text, where it failed in another process."""


class DeserializationError(ParticipantError):
    """`deserialize_training_input` failed on the global model."""


class TrainingError(ParticipantError):
    """`train_round` failed."""


class SerializationError(ParticipantError):
    """`serialize_training_result` failed, or what was trained is no update."""
