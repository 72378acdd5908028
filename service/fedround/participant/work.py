"""One round: its exchanges, and what follows from each response. Part of the participant's core: no I/O, no clock.

The rules:

1. The participant makes one exchange at a time: start_training, download, upload. It repeats a failed one after a jittered delay.
2. `start_training` accepts a training request. So does the token that comes with the heartbeat. A refused request is void.
3. The participant stores its update. A request for the same round and shard sends it again without training, if the model that it
   was trained on is still the global one. The ETag decides. Without an ETag the model counts as unchanged.
4. `counted` or `repeated` in the response confirms an upload. An upload without a response is sent again, and may have counted. A
   heartbeat's `counted`, a later round or `finish` confirms it; `stand_by` leaves it open.
5. An aggregator that sends neither is one of 0.8, where every upload may count. The same `round` right after an upload that may
   have arrived means "not yet known". The participant requests the round again only after `confirm_timeout`, at most
   `MAX_CONFIRMS` times. An upload that never had a connection cannot have arrived: it is retried like any other exchange.
6. 409 means that the round is over; 413, 415 and 422 reject the update. After any other rejection the token is invalid, and the
   participant requests another, at most `MAX_DEAD_TOKENS` times. A 404 to start_training decides nothing (0.8).
7. Once a heartbeat reports that the round is over, an upload under way has `SETTLE` seconds to get its response: it may be the
   upload that completed the round.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from fedround import events
from fedround.common import wire
from fedround.common.wire import HeartbeatState
from fedround.participant import moves as m
from fedround.participant.lane import Lane
from fedround.participant.moves import Outcome

OVER = 409
"""The status that means that the round is over."""
REFUSED = (413, 415, 422)
"""The statuses that reject an update."""
MAX_CONFIRMS = 3
"""Maximum times that the participant sends an update again which a 0.8 platform does not confirm."""
MAX_DEAD_TOKENS = 10
"""Maximum times that the participant requests another token: a restarted aggregator learns the tokens after some seconds."""
SETTLE = 5.0
"""Seconds for an upload under way once the heartbeat reports that its round is over."""

_COMMAND_OF: dict[type, type] = {
    m.StartTrainingAnswered: m.StartTraining,
    m.Downloaded: m.Download,
    m.ModelRefused: m.Download,
    m.UploadAnswered: m.Upload,
}
_PATHS: dict[type, str] = {m.StartTraining: wire.START_TRAINING, m.Download: wire.UPDATE, m.Upload: wire.UPDATE}


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """The round that the stored update was trained for, and the ETag of the model that it was trained on."""

    round: int
    etag: str | None
    train: bool = True
    """False: an evaluation without an update."""
    shard: wire.Shard | None = None
    """The shard that it was trained on, if the coordinator assigned it."""

    def fits(self, round: int, run: wire.Run | None) -> bool:
        """Return whether it fulfils a training request, provided that the model is the same."""
        trains, shard = (run.train, run.shard) if run else (True, None)
        return (self.round, self.train, self.shard) == (round, trains, shard)


@dataclass(frozen=True, slots=True)
class Ended:
    """The round is over."""

    outcome: Outcome
    reason: str = ""


class Step(Enum):
    """A step of the round other than an exchange."""

    TRAIN = auto()
    CONFIRM = auto()
    """Wait for the coordinator to confirm an upload that may have arrived."""


class Work:
    """The exchanges of one round: see the rules above.

    `legacy`: the coordinator is one of 0.8. `serials` yields serial numbers. Facts are appended to `facts`.
    """

    def __init__(
        self, policy: m.Policy, random: Callable[[], float], serials: Iterator[int], facts: list[events.Fact], id: str, round: int
    ) -> None:
        self.request = m.TrainingRequest(next(serials), id, round)
        self.lane = Lane(policy, random)
        self.legacy = False
        self.accepted_at: float | None = None
        self.sent_at: float | None = None
        """Time since which the aggregator may have the update, without a confirmation."""
        self.over = False
        """Whether the heartbeat reported the end of the round while the upload is still under way."""
        self.deadline = math.inf
        """End of the wait for a confirmation, or for the upload of a round that is over."""
        self.etag: str | None = None
        self._policy = policy
        self._serials = serials
        self._facts = facts
        self._dead_tokens = 0
        self._confirms = 0

    @property
    def uploading(self) -> bool:
        return self.lane.under_way and isinstance(self.lane.command, m.Upload)

    @property
    def confirming(self) -> bool:
        return self.lane.command is None and self.sent_at is not None

    @property
    def is_awaited(self) -> bool:
        """Whether the platform waits for an update: the round was accepted, or must be accepted to forfeit it."""
        return self.accepted_at is not None or (self.legacy and not self.request.token)

    def expects(self, event: m.TransferEvent) -> bool:
        """Return whether `event` is a response to the exchange under way."""
        return self.lane.under_way and isinstance(self.lane.command, _COMMAND_OF.get(type(event), object))

    def begin(self, answer: wire.Heartbeat, stored: StoredUpdate | None, now: float) -> None:
        if answer.url is not None and answer.token is not None:
            self._accept(answer.url, answer.token, answer, stored, now)
        else:
            self.legacy = True
            self.lane.plan(now, m.StartTraining(self.request))

    def resume(self, former: "Work", at: float) -> None:
        """Train the round of `former` again with the same id."""
        self.legacy, self.request = former.legacy, replace(former.request, serial=self.request.serial)
        self.lane.plan(at, m.StartTraining(self.request))

    def request_again(self, at: float) -> None:
        """Plan a request for another token."""
        self.deadline = math.inf
        self.request = replace(self.request, serial=next(self._serials))
        self.lane.plan(at, m.StartTraining(self.request))

    def take(self, event: m.TransferEvent, stored: StoredUpdate | None, now: float) -> Ended | Step | None:
        """Return what follows from the response to the exchange under way. None: the next exchange is planned."""
        transfer = self.lane.end()
        match event:
            case m.StartTrainingAnswered(_, wire.StartTraining(url=str(url), token=str(token)) as answer):
                self._accept(url, token, answer, stored, now)
                return None
            case m.StartTrainingAnswered():
                return self.given_up("start_training was refused")
            case m.Downloaded(_, etag, modified):
                return self._downloaded(etag, stored if not modified or etag in (None, stored and stored.etag) else None, now)
            case m.UploadAnswered(_, None):
                return self._sent(now)
            case m.UploadAnswered():
                return Ended(self._done)
            case m.ModelRefused(_, reason):
                return Ended(Outcome.FAILED, reason)
            case m.TransferFailed():
                return self._failed(transfer, event, now)
            case m.TransferRefused() if isinstance(transfer, m.StartTraining):
                return self._retry(transfer, "refused", None, now)
        return self._refused(transfer, event.status, f"{event.status} {event.detail}".strip(), now)

    def trained(self, now: float) -> StoredUpdate:
        self.lane.plan(now, m.Upload(self.request))
        return StoredUpdate(self.request.round, self.etag, self._trains, self.request.run.shard if self.request.run else None)

    def overdue(self, now: float) -> Ended | None:
        """Return what follows when `deadline` has passed."""
        if self.over:
            return self.given_up("the round was over before the update was sent")
        if self._confirms == MAX_CONFIRMS:
            return Ended(Outcome.FAILED, "the platform did not confirm the update")
        self._confirms += 1
        self.request_again(now)
        return None

    def settle(self, now: float) -> None:
        """Wait `SETTLE` seconds for the upload under way, because the heartbeat reports that the round is over."""
        if not self.over:
            self.over, self.deadline = True, now + SETTLE

    def given_up(self, reason: str) -> Ended:
        return Ended(Outcome.ABANDONED if self.sent_at is None else Outcome.UNCONFIRMED, reason)

    def continues(self, answer: wire.Heartbeat) -> bool:
        return answer.state is HeartbeatState.ROUND and answer.round == self.request.round

    def verdict(self, answer: wire.Heartbeat) -> Ended:
        """Return how the round ended, according to the heartbeat."""
        later = answer.round is not None and answer.round > self.request.round
        counted = answer.counted is not None and answer.counted >= self.request.round
        settled = later or counted or answer.state is HeartbeatState.FINISH
        reason = f"the coordinator reports {answer.state}"
        return Ended(self._done, reason) if settled and self.sent_at is not None else self.given_up(reason)

    @property
    def _trains(self) -> bool:
        return self.request.run is None or self.request.run.train

    @property
    def _done(self) -> Outcome:
        return Outcome.COMPLETED if self._trains else Outcome.EVALUATED

    def _accept(
        self, url: str, token: str, answer: wire.Heartbeat | wire.StartTraining, stored: StoredUpdate | None, now: float
    ) -> None:
        self.request = replace(self.request, url=url, token=token, run=answer.run)
        stored = stored if stored and stored.fits(self.request.round, answer.run) else None
        if self.accepted_at is None:
            self.accepted_at = now
            run = (answer.run.id, answer.run.name, answer.run.train) if answer.run else ()
            self._facts.append(
                events.RoundJoined(self.request.round, stored is not None, answer.traceparent, answer.tracelink, *run)
            )
        etag = None if stored is None else stored.etag
        known = stored is not None and etag is None
        self.lane.plan(now, m.Upload(self.request) if known else m.Download(self.request, etag))

    def _downloaded(self, etag: str | None, stored: StoredUpdate | None, now: float) -> Step | None:
        self.etag = etag
        if stored is not None:
            self.lane.plan(now, m.Upload(self.request))
            return None
        self.sent_at = None
        return Step.TRAIN

    def _sent(self, now: float) -> Ended | Step:
        self.sent_at = now if self.sent_at is None else self.sent_at
        if self.over:
            return self.given_up("the round was over before the platform confirmed the update")
        self.deadline = now + self._policy.confirm_timeout
        return Step.CONFIRM

    def _failed(self, transfer: m.Transfer | None, event: m.TransferFailed, now: float) -> Ended | Step | None:
        if isinstance(transfer, m.Upload) and event.may_have_arrived:
            if self.etag is None:
                return self._sent(now)
            self.sent_at = now if self.sent_at is None else self.sent_at
        return self._retry(transfer, event.reason, event.retry_after, now)

    def _retry(self, transfer: m.Transfer | None, reason: str, retry_after: float | None, now: float) -> Ended | None:
        if self.over:
            return self.given_up("the round was over before the update was sent")
        delay = self.lane.delay(retry_after)
        self.lane.plan(now + delay, transfer)
        self._facts.append(events.Retrying(_PATHS[type(transfer)], reason, delay))
        return None

    def _refused(self, transfer: m.Transfer | None, status: int, reason: str, now: float) -> Ended | None:
        if status in REFUSED and isinstance(transfer, m.Upload):
            return Ended(Outcome.REFUSED, reason)
        if status == OVER:  # the update was never counted: that would be `repeated`
            return Ended(Outcome.ABANDONED, reason)
        if self.over:
            return self.given_up(reason)
        if self._dead_tokens == MAX_DEAD_TOKENS:
            return Ended(Outcome.FAILED, reason)
        self._dead_tokens += 1
        self.request_again(now + self.lane.delay())
        return None
