"""The seats of participants, and the ordinals that seats hold. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass

from fedround.common.wire import Claim, Shard

Who = tuple[str, str]
"""The identity that failures count against, and that identifies a participant across restarts."""


def who(id: str, name: str, owner: str, *, extended: bool) -> Who:
    """Return the proved identity, or else the name. A 0.8 participant sends no name and has only its id."""
    if owner:
        return "owner", owner
    return ("name", name) if extended else ("id", id)


@dataclass(frozen=True, slots=True)
class Known:
    """The part of a seat that survives a restart."""

    id: str
    name: str
    ordinal: int | None
    extended: bool
    counted: int | None
    owed: int | None
    owner: str = ""
    selected_rounds: int = 0
    counted_rounds: int = 0
    evaluates: bool = False
    shards: int = 0
    """Number of shards in its claim; 0: no claim."""
    shard: int | None = None
    asks: bool = False

    @property
    def claim(self) -> Claim | None:
        return Claim(self.shards, self.shard, self.asks) if self.shards else None


@dataclass(slots=True)
class Participant:
    """The seat of one registration. Times are monotonic seconds."""

    id: str
    name: str
    owner: str
    """The proved identity that registered it, which alone may act for it; empty: any client that is let in."""
    extended: bool
    """Whether the participant understands fedround's additions to the protocol."""
    ordinal: int | None
    """The lowest free number when it was assigned; None before the first heartbeat of a 0.8 participant."""
    joined: float
    seen: float
    """When it last sent a heartbeat, or received the response to one."""
    expires: float
    heard: bool = False
    """Whether it has ever sent a heartbeat, including before a restart of the coordinator."""
    beat: float = -math.inf
    """When it last sent a heartbeat."""
    free_since: float = 0.0
    """When its last part in an attempt ended."""
    pause: float = 0.0
    """Seconds from its last response to its last heartbeat."""
    probed: float = -math.inf
    """When its last probe began."""
    probe_at: float = math.inf
    """When its next probe begins."""
    gone_at: float = math.inf
    """When it is removed, unless it sends a heartbeat before."""
    trouble: str = ""
    """Why it cannot reach the aggregator, for operators."""
    counted: int | None = None
    """The last round in which its update was counted."""
    delivered: bool = False
    """Whether an update of this seat was counted since the coordinator started."""
    owed: int | None = None
    """The round that selects it again: it had a part in a lost attempt, and may have learned that its update was counted."""
    selected_rounds: int = 0
    """Number of completed rounds that selected it, since it joined."""
    counted_rounds: int = 0
    """Number of those that counted its update."""
    evaluates: bool = False
    """Whether it can evaluate models."""
    known_to_books: bool = False
    """Whether it was ever selected. If so, the books must forget it when it is gone."""
    claim: Claim | None = None
    """Its claim about shards; None: it uses none."""
    index: int | None = None
    """Index of the shard that it holds."""

    @property
    def who(self) -> Who:
        return who(self.id, self.name, self.owner, extended=self.extended)

    @property
    def judged(self) -> Who:
        """The identity that its failures count against: its id once it has delivered, as any client may use an unproved name."""
        return ("id", self.id) if self.delivered and not self.owner else self.who

    @property
    def shard(self) -> Shard | None:
        """The shard that it holds."""
        return None if self.claim is None or self.index is None else (self.index, self.claim.count)

    @property
    def asks(self) -> bool:
        """Whether the coordinator assigns its shard."""
        return self.claim is not None and self.claim.asks

    def claims(self, claim: Claim | None) -> None:
        """Set its claim about shards."""
        self.claim, self.index = claim, None if claim is None or claim.asks else claim.index

    def known(self, owed: int | None) -> Known:
        seat = self.id, self.name, self.ordinal, self.extended, self.counted, owed, self.owner
        shard = (self.claim.count, self.index, self.claim.asks) if self.claim else ()
        return Known(*seat, self.selected_rounds, self.counted_rounds, self.evaluates, *shard)

    def rolled_back(self, newest: int) -> None:
        """Note a rollback to the model of round `newest`: discard what concerns later rounds."""
        if self.counted is not None and self.counted > newest:
            self.counted = newest
        if self.owed != newest + 1:
            self.owed = None


class Ordinals:
    """The numbers that seats hold."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._lowest_free = 0

    def take(self, wanted: int | None) -> int:
        """Return `wanted` if it is free, else the lowest free number."""
        if wanted is None or wanted in self._taken:
            wanted = self._lowest_free
            while wanted in self._taken:
                wanted += 1
            self._lowest_free = wanted + 1
        self._taken.add(wanted)
        return wanted

    def free(self, ordinal: int) -> None:
        self._taken.discard(ordinal)
        self._lowest_free = min(self._lowest_free, ordinal)
