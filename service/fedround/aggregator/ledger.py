"""The ledger: the upload permissions, and the counted updates in order. A protocol core: no I/O, no clock.

The rules:

1. One attempt of a round is open at a time. Opening another attempt ends it and voids its updates. An ended attempt stays ended.
2. An upload permission consists of an id and its newest token. It is *admitted* once. Then it is *counted* with its update, or is
   *over*: it was revoked, its update was refused, or its attempt has ended. If it has an owner, only the owner may use it.
3. An update is counted at most once, and only while its permission is admitted. Counting makes an entry. The caller folds it in the
   same step (`countable`, fold, `count`, with nothing in between), so the entries always match the aggregate.
4. With a counted token, a participant may still read the model, and repeat its upload, which is discarded. This ends when the id
   uses a newer token or is forgotten. xain-sdk 0.8.0 may train and upload again with a counted token, even when it is selected
   again, and exits if that is refused.
5. A revocation waits while an upload can complete in time: within the coordinator's patience, at its rate so far. Meanwhile no
   other upload begins. If no upload can complete in time, the permission is over and its uploads are aborted.
6. A round whose model exists is over: no attempt of it opens.
7. Entries have numbers from 1 within an incarnation, and remain until the coordinator acknowledges them. If the aggregate is lost,
   a new incarnation begins.
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
"""Maximum number of simultaneous uploads for one permission: a retry may begin before the aggregator notices a lost connection."""
REMEMBERED_ATTEMPTS = 64
"""Number of ended attempts to remember, so that a delayed call does not open one of them again."""


class State(Enum):
    """The state of a permission: rule 2."""

    ADMITTED = "admitted"
    COUNTED = "counted"
    OVER = "over"


@dataclass(slots=True)
class Permission:
    """An upload permission."""

    id: str
    token: str
    owner: str = ""
    """The only proved identity that may use it; empty: any client with the token may."""
    former: str | None = None
    """The token that this one replaced. A request with it is late, and not unknown."""
    counted_before: "Permission | None" = None
    """The last counted permission of the id, which stays valid until this one is used: rule 4."""
    state: State = State.ADMITTED
    receiving: list["Upload"] = field(default_factory=list)
    """The uploads that have not ended."""
    revoking: bool = False
    """Whether it is revoked as soon as no upload can complete in time: rule 5."""


@dataclass(slots=True)
class Upload:
    """An upload, from `begin` to its end by `abort`, `count` or `refuse`."""

    permission: Permission
    repeated: bool
    """Whether the permission was counted before. If so, receive and discard the upload, and report the repeat."""
    began: float = 0.0
    """When it began, in monotonic seconds."""
    length: int | None = None
    """Announced size in bytes; None: unknown."""
    received: int = 0
    """Bytes received so far."""
    ended: bool = False

    @property
    def id(self) -> str:
        """Id of the participant."""
        return self.permission.id

    def remaining(self, now: float) -> float:
        """Return the remaining seconds at the rate so far; 0 if they are unknown."""
        seconds = now - self.began
        if self.length is None or seconds < MEASURED:
            return 0.0
        missing = max(self.length - self.received, 0)
        return missing * seconds / self.received if self.received else math.inf


@dataclass(slots=True)
class Attempt:
    """The open attempt."""

    id: str
    round: int
    closed: bool = False
    counted: dict[str, int] = field(default_factory=dict)
    """Sample counts by id, in the order of folding."""
    revoked: set[str] = field(default_factory=set)
    """Ids that lost their permission, which a delayed call must not admit again."""


class Ledger:
    """The ledger of an aggregator, by the rules above.

    Args:
        incarnation: Identifies the aggregate.
        newest: The newest trained model.
    """

    def __init__(self, incarnation: str, newest: Newest | None = None) -> None:
        self.incarnation = incarnation
        self.newest = newest
        self.acknowledged = 0
        self.attempt: Attempt | None = None
        self._ended: deque[str] = deque(maxlen=REMEMBERED_ATTEMPTS)
        self._permissions: dict[str, Permission] = {}
        self._entries: deque[Entry] = deque()
        self._seq = 0
        self._lost = ""

    # Calls of the coordinator

    def open(self, attempt: str, round: int, admissions: Sequence[Admission], forget: Sequence[str] = ()) -> bool:
        """Open an attempt. Return whether it is new, with a new aggregate. Raises `UnknownAttempt` if it or its round is over."""
        new = self.attempt is None or self.attempt.id != attempt
        if attempt in self._ended or (new and self.newest is not None and self.newest.round >= round):
            raise UnknownAttempt(attempt)
        if new:
            self._end_attempt()
            self.attempt = Attempt(attempt, round)
        for id in forget:
            self._permissions.pop(id, None)
        self.admit(attempt, admissions)
        return new

    def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """Admit ids with their tokens. A repeated call changes nothing. Raises `UnknownAttempt`."""
        current = self._current(attempt)
        if current.closed:
            return
        for admission in admissions:
            permission = self._permissions.get(admission.id)
            known = permission is not None and permission.token == admission.token
            if known or admission.id in current.revoked:
                continue
            if admission.id in current.counted:
                raise IllegalMove("counted", f"admit({admission.id[:8]})")
            new = Permission(admission.id, admission.token, admission.owner)
            if permission is not None:
                new.former = permission.token
                new.counted_before = permission if permission.state is State.COUNTED else permission.counted_before
                if permission.state is State.ADMITTED:
                    permission.state = State.OVER
            self._permissions[admission.id] = new

    def revoke(self, attempt: str, id: str, patience: float = 0.0, now: float = 0.0) -> Verdict:
        """Revoke the permission of an id: rule 5, with a patience in seconds. Raises `UnknownAttempt`."""
        current = self._current(attempt)
        if id in current.counted:
            return Verdict.COUNTED
        permission = self._permissions.get(id)
        if permission is not None and permission.state is State.ADMITTED:
            if patience > 0 and any(upload.remaining(now) <= patience for upload in permission.receiving):
                permission.revoking = True
                return Verdict.RECEIVING
            permission.state = State.OVER
        current.revoked.add(id)
        return Verdict.REVOKED

    def close(self, attempt: str, ids: Sequence[str]) -> Difference | None:
        """Close the attempt if exactly `ids` were counted. A repeated call changes nothing. Raises `UnknownAttempt`."""
        current = self._current(attempt)
        expected, counted = frozenset(ids), frozenset(current.counted)
        if expected != counted:
            return Difference(missing=expected - counted, surplus=counted - expected)
        current.closed = True
        self._end_permissions()
        return None

    def page(self, incarnation: str, after: int) -> Page:
        """Return the entries after number `after`, and acknowledge the others. With a wrong `incarnation`, return all entries."""
        if incarnation != self.incarnation:
            after = 0
        self.acknowledged = max(self.acknowledged, min(after, self._seq))
        while self._entries and self._entries[0].seq <= self.acknowledged:
            self._entries.popleft()
        return Page(self.incarnation, tuple(self._entries), self.newest, lost=self._lost)

    # Requests of participants

    def check_read(self, id: str, token: str, owner: str = "") -> None:
        """Check that a request with the proved identity `owner` may read the model. Raises `NotAdmitted`, `Forbidden` or `Late`."""
        self._permission(id, token, owner)

    def knows(self, id: str, token: str) -> bool:
        """Return whether this is a token of the id, for the open attempt or the one before."""
        permission = self._permissions.get(id)
        before = permission.counted_before if permission else None
        return permission is not None and token in (permission.token, permission.former, before.token if before else None)

    def begin(self, id: str, token: str, owner: str = "", *, now: float = 0.0, length: int | None = None) -> Upload:
        """Begin an upload.

        Args:
            id: Id of the participant.
            token: Its token.
            owner: The proved identity of the request; empty: none.
            now: Monotonic seconds.
            length: The announced size in bytes.

        Raises:
            NotAdmitted, Forbidden, Late: The permission does not allow it.
            Busy: The permission has too many simultaneous uploads.
        """
        permission = self._permission(id, token, owner)
        if permission.revoking and permission.state is State.ADMITTED:
            raise Late("the upload permission is being revoked: only uploads that had already begun are accepted")
        if len(permission.receiving) >= MOST_AT_ONCE:
            raise Busy("too many simultaneous uploads of one participant", retry_after=5.0)
        upload = Upload(permission, repeated=permission.state is State.COUNTED, began=now, length=length)
        permission.receiving.append(upload)
        return upload

    def receive(self, upload: Upload, size: int) -> None:
        """Add `size` received bytes. Raises `Late` if the permission is over: do not receive the rest."""
        upload.received += size
        if upload.permission.state is State.OVER:
            raise Late(OVER)

    def abort(self, upload: Upload) -> None:
        """End an upload without a new update: it was cut, too slow, or a repeat."""
        self._end_upload(upload, "abort")

    def countable(self, upload: Upload) -> bool:
        """Return whether to fold and then `count` the update; False: another upload was counted meanwhile. Raises `Late`."""
        if upload.permission.state is State.OVER:
            raise Late(OVER)
        return upload.permission.state is State.ADMITTED

    def count(self, upload: Upload, samples: int, metrics: Mapping[str, float], evaluation: Evaluation | None = None) -> Entry:
        """Count the update that was just folded. Return its entry."""
        if self.attempt is None or upload.permission.state is not State.ADMITTED:
            raise IllegalMove(upload.permission.state, "count")
        self._end_upload(upload, "count")
        upload.permission.state = State.COUNTED
        self.attempt.counted[upload.id] = samples
        return self._append(Outcome.COUNTED, self.attempt, upload.id, samples, metrics, evaluation=evaluation)

    def refuse(self, upload: Upload, reason: str = "") -> None:
        """End the permission of an invalid update. Its entry has the `reason`."""
        self._end_upload(upload, "refuse")
        if self.attempt is not None and upload.permission.state is State.ADMITTED:
            upload.permission.state = State.OVER
            self.attempt.revoked.add(upload.id)
            self._append(Outcome.REFUSED, self.attempt, upload.id, 0, {}, one_line(reason))

    def lose(self, incarnation: str, reason: str = "") -> None:
        """Discard the attempt and all entries, because the aggregate is lost. The next page has the `reason`."""
        self._end_attempt()
        self.attempt = None
        self._entries.clear()
        self._seq = self.acknowledged = 0
        self.incarnation, self._lost = incarnation, one_line(reason)

    def _current(self, attempt: str) -> Attempt:
        if self.attempt is None or self.attempt.id != attempt:
            raise UnknownAttempt(attempt)
        return self.attempt

    def _permission(self, id: str, token: str, owner: str) -> Permission:
        permission = self._permissions.get(id)
        if permission is None:
            raise NotAdmitted("no such id and token")
        before = permission.counted_before
        if before is not None and token != before.token:
            before = None
        if before is None and token not in (permission.token, permission.former):
            raise NotAdmitted("no such id and token")
        if permission.owner not in ("", owner):
            raise Forbidden
        if before is not None:
            return before
        if token == permission.former or permission.state is State.OVER:
            raise Late("the round of this token is over, or was reassigned to other participants")
        permission.counted_before = None
        return permission

    def _end_upload(self, upload: Upload, event: str) -> None:
        if upload.ended:
            raise IllegalMove("ended", event)
        upload.ended = True
        upload.permission.receiving = [other for other in upload.permission.receiving if other is not upload]

    def _append(
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
            self._end_permissions()

    def _end_permissions(self) -> None:
        for permission in self._permissions.values():
            if permission.state is State.ADMITTED:
                permission.state = State.OVER
