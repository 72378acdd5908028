"""The ledger: who may deliver an update, and which updates were counted, in which order. A protocol core: no I/O, no clock.

The rules:

1. One attempt of a round is open at a time. Opening another ends it: what it counted is void. An ended attempt never comes back.
2. A *right* is one id's newest token. It is admitted once; then it is counted, or it is over (revoked, refused, its attempt ended).
   If it has an owner, no other identity may use it: neither read, nor deliver, nor repeat.
3. An update is counted when its right is admitted at the moment of counting, and a right is counted at most once: an entry.
   Whoever counts has folded in the same step (`countable`, fold, `count`, with nothing in between), so the entries are the sum.
4. A counted token stays good for reading, and for a repeat that is read and thrown away, until its id uses a newer one or is
   forgotten: xain-sdk 0.8.0 may train and deliver once more with it, even when it is selected again, and ends where it is refused.
5. A right is not revoked while an update is being received for it that can be whole in time: within the coordinator's patience, at
   its rate so far. Once a revocation was asked for, no other update begins; one that cannot be whole in time is cut.
6. A round whose model there is is over: no attempt of it is opened.
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

OVER = "the round is over, or was given to others"
MEASURED = 1.0
"""Seconds after which the rate of an upload is known."""
MOST_AT_ONCE = 4
"""Uploads for one right: a participant sends one, and again when its connection is lost without our knowing."""
REMEMBERED_ATTEMPTS = 64
"""How many ended attempts are known as ended: a call for one of them that was long on its way must not open it again."""


class State(Enum):
    """What may still be done with a right."""

    ADMITTED = "admitted"
    COUNTED = "counted"
    OVER = "over"


@dataclass(slots=True)
class Right:
    id: str
    token: str
    owner: str = ""
    """The proved identity that alone may use it; empty: everybody that bears the token."""
    former: str | None = None
    """The token that this one replaced: late, rather than unknown."""
    counted_before: "Right | None" = None
    """The right that was counted last, as long as this one has not been used."""
    state: State = State.ADMITTED
    receiving: list["Receipt"] = field(default_factory=list)
    asked_back: bool = False


@dataclass(slots=True)
class Receipt:
    """One upload, from its first byte to its end by `abort`, `count` or `refuse`."""

    right: Right
    repeated: bool
    """Its update was counted before it began: read it, throw it away, and say so."""
    began: float = 0.0
    """In monotonic seconds."""
    length: int | None = None
    """Bytes that were announced."""
    received: int = 0
    """Bytes that have come."""
    ended: bool = False

    @property
    def id(self) -> str:
        return self.right.id

    def left(self, now: float) -> float:
        """Return how many seconds it still takes at its rate so far; 0 where nobody can tell."""
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
    """Samples by id, in the order of folding."""
    revoked: set[str] = field(default_factory=set)


class Ledger:
    """See the rules above. `incarnation` names the life of the sum, `newest` the model that is there."""

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
        """Begin an attempt; True when it is a new one, with a new sum. Raises `UnknownAttempt` when it, or its round, is over."""
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
        """Give each id its token. A repeat changes nothing. Raises `UnknownAttempt`."""
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
        """Take an id's right back, unless its update was counted, or can be whole within `patience` seconds.

        Raises `UnknownAttempt`.
        """
        current = self._current(attempt)
        if id in current.counted:
            return Verdict.COUNTED
        right = self._rights.get(id)
        if right is not None and right.state is State.ADMITTED:
            if patience > 0 and any(receipt.left(now) <= patience for receipt in right.receiving):
                right.asked_back = True
                return Verdict.RECEIVING
            right.state = State.OVER
        current.revoked.add(id)
        return Verdict.REVOKED

    def close(self, attempt: str, ids: Sequence[str]) -> Difference | None:
        """Close the attempt if exactly `ids` were counted; the second time that changes nothing. Raises `UnknownAttempt`."""
        current = self._current(attempt)
        expected, counted = frozenset(ids), frozenset(current.counted)
        if expected != counted:
            return Difference(missing=expected - counted, surplus=counted - expected)
        current.closed = True
        self._end_rights()
        return None

    def page(self, incarnation: str, after: int) -> Page:
        """The entries behind number `after`; those up to it are acknowledged, if `incarnation` is this one."""
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
        """Whether a participant was given this token, for a round that is open or the one before."""
        right = self._rights.get(id)
        before = right.counted_before if right else None
        return right is not None and token in (right.token, right.former, before.token if before else None)

    def begin(self, id: str, token: str, owner: str = "", *, now: float = 0.0, length: int | None = None) -> Receipt:
        """Begin an upload by `owner` of `length` bytes.

        Raises as `check_read`, and `Busy` where too many of one right are under way.
        """
        right = self._right(id, token, owner)
        if right.asked_back and right.state is State.ADMITTED:
            raise Late("the time for it is over: only what was on its way is waited for")
        if len(right.receiving) >= MOST_AT_ONCE:
            raise Busy("so many uploads of one participant at once are too many", retry_after=5.0)
        receipt = Receipt(right, repeated=right.state is State.COUNTED, began=now, length=length)
        right.receiving.append(receipt)
        return receipt

    def took(self, receipt: Receipt, size: int) -> None:
        """So many more bytes of it have come. Raises `Late`: its right is over, nobody waits for the rest."""
        receipt.received += size
        if receipt.right.state is State.OVER:
            raise Late(OVER)

    def abort(self, receipt: Receipt) -> None:
        """The upload ended without an update: cut, too slow, or a repeat."""
        self._end(receipt, "abort")

    def countable(self, receipt: Receipt) -> bool:
        """True: fold it, then `count` it. False: it was counted meanwhile. Raises `Late`."""
        if receipt.right.state is State.OVER:
            raise Late(OVER)
        return receipt.right.state is State.ADMITTED

    def count(self, receipt: Receipt, samples: int, metrics: Mapping[str, float], evaluation: Evaluation | None = None) -> Entry:
        """Enter an update that was just folded."""
        if self.attempt is None or receipt.right.state is not State.ADMITTED:
            raise IllegalMove(receipt.right.state, "count")
        self._end(receipt, "count")
        receipt.right.state = State.COUNTED
        self.attempt.counted[receipt.id] = samples
        return self._enter(Outcome.COUNTED, self.attempt, receipt.id, samples, metrics, evaluation=evaluation)

    def refuse(self, receipt: Receipt, reason: str = "") -> None:
        """End the right of an update that is not valid; its entry tells the coordinator the `reason`."""
        self._end(receipt, "refuse")
        if self.attempt is not None and receipt.right.state is State.ADMITTED:
            receipt.right.state = State.OVER
            self.attempt.revoked.add(receipt.id)
            self._enter(Outcome.REFUSED, self.attempt, receipt.id, 0, {}, one_line(reason))

    def lose(self, incarnation: str, reason: str = "") -> None:
        """Lose the sum, and with it the attempt and all entries. The coordinator is told the `reason`."""
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
            raise Late("the round of this token is over, or was given to others")
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
