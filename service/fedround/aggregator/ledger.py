"""The ledger: the upload permissions, and the counted updates in order. A protocol core: no I/O, no clock.

The code calls an upload permission a *right*.

The rules:

1. One attempt of a round is open at a time. Opening another attempt ends it and voids its updates. An ended attempt stays ended.
2. A right belongs to one id and its newest token. It is admitted once. Then it is counted, or it is over: revoked, refused, or its
   attempt has ended. Only the right's owner, if it has one, may use it to read, deliver or repeat.
3. An update is counted only while its right is admitted, and at most once. Counting it makes an entry. The caller folds in the
   same step (`countable`, fold, `count`, with nothing in between), so the entries always match the sum.
4. A counted token stays valid for reading, and for a repeat that is received and discarded, until its id uses a newer token or is
   forgotten. xain-sdk 0.8.0 may train and deliver again with it, even when it is selected again, and exits if it is refused.
5. The ledger does not revoke a right while it receives an update that can complete in time: within the coordinator's patience, at
   its rate so far. After a revocation request, no other upload begins, and an upload that cannot complete in time is cut.
6. A round whose model exists is over: no attempt of it is opened.
7. Entries are numbered from 1 within an incarnation, and kept until they are acknowledged. Losing the sum begins a new incarnation.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fedround.common.books import Admission, Difference, Entry, Evaluation, Newest, Outcome, Page, Verdict
from fedround.common.wire import one_line
from fedround.errors import Busy, Forbidden, IllegalMove, Late, NotAdmitted, UnknownAttempt

OVER = "the round is over, or was reassigned to other participants"
MEASURED = 1.0
"""Seconds after which the rate of an upload is known."""
MOST_AT_ONCE = 4
"""Maximum number of simultaneous uploads for one right. A retry may begin before the aggregator notices a lost connection."""
REMEMBERED_ATTEMPTS = 64
"""Number of ended attempts that are remembered, so that a delayed call cannot open one of them again."""


class State(Enum):
    """The state of a right."""

    ADMITTED = "admitted"
    COUNTED = "counted"
    OVER = "over"


@dataclass(slots=True)
class Right:
    """An upload permission."""

    id: str
    token: str
    owner: str = ""
    """The proved identity that alone may use it; empty: any client with the token."""
    former: str | None = None
    """The token that this one replaced. A request with it is late, rather than unknown."""
    counted_before: "Right | None" = None
    """The right that was counted last, until this one is used."""
    state: State = State.ADMITTED
    receiving: list["Receipt"] = field(default_factory=list)
    revoking: bool = False


@dataclass(slots=True)
class Receipt:
    """An upload, from its first byte to its end by `abort`, `count` or `refuse`."""

    right: Right
    repeated: bool
    """Whether its update was counted before it began. If so, receive and discard it, and report the repeat."""
    began: float = 0.0
    """In monotonic seconds."""
    length: int | None = None
    """Announced size in bytes."""
    received: int = 0
    """Bytes received so far."""
    ended: bool = False

    @property
    def id(self) -> str:
        return self.right.id

    def left(self, now: float) -> float:
        """Return the remaining seconds at its rate so far; 0 if they are unknown."""
        seconds = now - self.began
        if self.length is None or seconds < MEASURED:
            return 0.0
        missing = max(self.length - self.received, 0)
        return missing * seconds / self.received if self.received else math.inf


@dataclass(slots=True)
class Attempt:
    id: str
    round: int
    closed: bool = False
    counted: dict[str, int] = field(default_factory=dict)
    """Samples by id, in the order in which the updates were folded."""
    revoked: set[str] = field(default_factory=set)


class Ledger:
    """See the rules above. `incarnation` identifies the sum, `newest` the newest model."""

    def __init__(self, incarnation: str, newest: Newest | None = None) -> None:
        self.incarnation = incarnation
        self.newest = newest
        self.acknowledged = 0
        self.attempt: Attempt | None = None
        self._ended: deque[str] = deque(maxlen=REMEMBERED_ATTEMPTS)
        self._rights: dict[str, Right] = {}
        self._entries: deque[Entry] = deque()
        self._seq = 0
        self._lost = ""

    # The coordinator's calls

    def open(self, attempt: str, round: int, admissions: Sequence[Admission], forget: Sequence[str] = ()) -> bool:
        """Open an attempt. Return whether it is new, with a new sum. Raises `UnknownAttempt` if it or its round is over."""
        new = self.attempt is None or self.attempt.id != attempt
        if attempt in self._ended or (new and self.newest is not None and self.newest.round >= round):
            raise UnknownAttempt(attempt)
        if new:
            self._end_attempt()
            self.attempt = Attempt(attempt, round)
        for id in forget:
            self._rights.pop(id, None)
        self.admit(attempt, admissions)
        return new

    def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """Admit each id with its token. A repeated call changes nothing. Raises `UnknownAttempt`."""
        current = self._current(attempt)
        if current.closed:
            return
        for admission in admissions:
            right = self._rights.get(admission.id)
            known = right is not None and right.token == admission.token
            if known or admission.id in current.revoked:
                continue
            if admission.id in current.counted:
                raise IllegalMove("counted", f"admit({admission.id[:8]})")
            new = Right(admission.id, admission.token, admission.owner)
            if right is not None:
                new.former = right.token
                new.counted_before = right if right.state is State.COUNTED else right.counted_before
                if right.state is State.ADMITTED:
                    right.state = State.OVER
            self._rights[admission.id] = new

    def revoke(self, attempt: str, id: str, patience: float = 0.0, now: float = 0.0) -> Verdict:
        """Revoke an id's right, unless its update was counted or can complete within `patience` seconds.

        Raises `UnknownAttempt`.
        """
        current = self._current(attempt)
        if id in current.counted:
            return Verdict.COUNTED
        right = self._rights.get(id)
        if right is not None and right.state is State.ADMITTED:
            if patience > 0 and any(receipt.left(now) <= patience for receipt in right.receiving):
                right.revoking = True
                return Verdict.RECEIVING
            right.state = State.OVER
        current.revoked.add(id)
        return Verdict.REVOKED

    def close(self, attempt: str, ids: Sequence[str]) -> Difference | None:
        """Close the attempt if exactly `ids` were counted. A repeated call changes nothing. Raises `UnknownAttempt`."""
        current = self._current(attempt)
        expected, counted = frozenset(ids), frozenset(current.counted)
        if expected != counted:
            return Difference(missing=expected - counted, surplus=counted - expected)
        current.closed = True
        self._end_rights()
        return None

    def page(self, incarnation: str, after: int) -> Page:
        """Return the entries after number `after`. If `incarnation` is the current one, this acknowledges the others."""
        if incarnation != self.incarnation:
            after = 0
        self.acknowledged = max(self.acknowledged, min(after, self._seq))
        while self._entries and self._entries[0].seq <= self.acknowledged:
            self._entries.popleft()
        return Page(self.incarnation, tuple(self._entries), self.newest, lost=self._lost)

    # The participants' exchanges

    def check_read(self, id: str, token: str, owner: str = "") -> None:
        """Check that the proved identity `owner` may read the global model. Raises `NotAdmitted`, `Forbidden` or `Late`."""
        self._right(id, token, owner)

    def knows(self, id: str, token: str) -> bool:
        """Return whether a participant has this token for the open round or the one before."""
        right = self._rights.get(id)
        before = right.counted_before if right else None
        return right is not None and token in (right.token, right.former, before.token if before else None)

    def begin(self, id: str, token: str, owner: str = "", *, now: float = 0.0, length: int | None = None) -> Receipt:
        """Begin an upload of `length` bytes by `owner`.

        Raises the errors of `check_read`, and `Busy` if the right has too many uploads under way.
        """
        right = self._right(id, token, owner)
        if right.revoking and right.state is State.ADMITTED:
            raise Late("the upload permission is being revoked: only uploads that had already begun are accepted")
        if len(right.receiving) >= MOST_AT_ONCE:
            raise Busy("too many simultaneous uploads of one participant", retry_after=5.0)
        receipt = Receipt(right, repeated=right.state is State.COUNTED, began=now, length=length)
        right.receiving.append(receipt)
        return receipt

    def took(self, receipt: Receipt, size: int) -> None:
        """Note `size` more received bytes. Raises `Late` if the right is over: do not receive the rest."""
        receipt.received += size
        if receipt.right.state is State.OVER:
            raise Late(OVER)

    def abort(self, receipt: Receipt) -> None:
        """End an upload without an update: cut, too slow, or a repeat."""
        self._end(receipt, "abort")

    def countable(self, receipt: Receipt) -> bool:
        """Return whether to fold and then `count` the update; False: it was counted meanwhile. Raises `Late`."""
        if receipt.right.state is State.OVER:
            raise Late(OVER)
        return receipt.right.state is State.ADMITTED

    def count(self, receipt: Receipt, samples: int, metrics: Mapping[str, float], evaluation: Evaluation | None = None) -> Entry:
        """Enter the update that was just folded."""
        if self.attempt is None or receipt.right.state is not State.ADMITTED:
            raise IllegalMove(receipt.right.state, "count")
        self._end(receipt, "count")
        receipt.right.state = State.COUNTED
        self.attempt.counted[receipt.id] = samples
        return self._enter(Outcome.COUNTED, self.attempt, receipt.id, samples, metrics, evaluation=evaluation)

    def refuse(self, receipt: Receipt, reason: str = "") -> None:
        """End the right of an invalid update. The entry gives the coordinator the `reason`."""
        self._end(receipt, "refuse")
        if self.attempt is not None and receipt.right.state is State.ADMITTED:
            receipt.right.state = State.OVER
            self.attempt.revoked.add(receipt.id)
            self._enter(Outcome.REFUSED, self.attempt, receipt.id, 0, {}, one_line(reason))

    def lose(self, incarnation: str, reason: str = "") -> None:
        """Discard the sum, the attempt and all entries. The next page gives the coordinator the `reason`."""
        self._end_attempt()
        self.attempt = None
        self._entries.clear()
        self._seq = self.acknowledged = 0
        self.incarnation, self._lost = incarnation, one_line(reason)

    def _current(self, attempt: str) -> Attempt:
        if self.attempt is None or self.attempt.id != attempt:
            raise UnknownAttempt(attempt)
        return self.attempt

    def _right(self, id: str, token: str, owner: str) -> Right:
        right = self._rights.get(id)
        if right is None:
            raise NotAdmitted("no such id and token")
        before = right.counted_before
        if before is not None and token != before.token:
            before = None
        if before is None and token not in (right.token, right.former):
            raise NotAdmitted("no such id and token")
        if right.owner not in ("", owner):
            raise Forbidden
        if before is not None:
            return before
        if token == right.former or right.state is State.OVER:
            raise Late("the round of this token is over, or was reassigned to other participants")
        right.counted_before = None
        return right

    def _end(self, receipt: Receipt, event: str) -> None:
        if receipt.ended:
            raise IllegalMove("ended", event)
        receipt.ended = True
        receipt.right.receiving = [other for other in receipt.right.receiving if other is not receipt]

    def _enter(
        self,
        outcome: Outcome,
        attempt: Attempt,
        id: str,
        samples: int,
        metrics: Mapping[str, float],
        reason: str = "",
        evaluation: Evaluation | None = None,
    ) -> Entry:
        self._seq += 1
        entry = Entry(self._seq, attempt.id, id, outcome, samples, dict(metrics), reason, evaluation)
        self._entries.append(entry)
        return entry

    def _end_attempt(self) -> None:
        if self.attempt is not None:
            self._ended.append(self.attempt.id)
            self._end_rights()

    def _end_rights(self) -> None:
        for right in self._rights.values():
            if right.state is State.ADMITTED:
                right.state = State.OVER
