"""A seat: what is known of one registration; and the ordinals that seats hold. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass

from fedround.common.wire import Claim, Shard

Who = tuple[str, str]
"""Whom failures count against, and by whom a former life is recognised."""


def who(id: str, name: str, owner: str, *, extended: bool) -> Who:
    """Return the proved identity, else the name; a participant of 0.8 gives no name and is known by its id alone."""
    if owner:
        return "owner", owner
    return ("name", name) if extended else ("id", id)


@dataclass(frozen=True, slots=True)
class Known:
    """What is worth knowing of a seat after a restart."""

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
    """The number of shards that it said; 0: none."""
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
    """The proved identity that registered it, which alone may act for it; empty: every client that is let in."""
    extended: bool
    """It is one of ours, and understands our additions to the protocol."""
    ordinal: int | None
    """The lowest number that no other seat held when it got it; None before the first heartbeat of a participant of 0.8."""
    joined: float
    seen: float
    """When it last sent a heartbeat, or got the answer to one."""
    expires: float
    heard: bool = False
    """It has sent a heartbeat, in this life of the coordinator or the one before."""
    beat: float = -math.inf
    """When it last sent a heartbeat."""
    free_since: float = 0.0
    """When its last part in an attempt ended."""
    pause: float = 0.0
    """Seconds from its last answer to its last heartbeat."""
    probed: float = -math.inf
    """When it last had to prove that it lives."""
    probe_at: float = math.inf
    """When it has to do so next."""
    gone_at: float = math.inf
    """When it is removed, unless it sends a heartbeat before."""
    trouble: str = ""
    """What keeps it from the aggregator, for people."""
    counted: int | None = None
    """The last round in which its update was counted."""
    delivered: bool = False
    """An update of this seat was counted, in this life of the coordinator."""
    owed: int | None = None
    """The round for which it is asked again: it had a part in a lost attempt, and may have been told that it was counted."""
    selected_rounds: int = 0
    """Number of completed rounds that selected it, since it joined."""
    counted_rounds: int = 0
    """Number of those that counted its update."""
    evaluates: bool = False
    """It can evaluate models."""
    known_to_books: bool = False
    """It was selected at least once: when it is gone, the books are told to forget it."""
    claim: Claim | None = None
    """What it said about shards."""
    index: int | None = None
    """The index of the shard that it holds."""

    @property
    def who(self) -> Who:
        return who(self.id, self.name, self.owner, extended=self.extended)

    @property
    def judged(self) -> Who:
        """Whom its failures count against: itself once it has delivered, since anybody may use a name that nobody proves."""
        return ("id", self.id) if self.delivered and not self.owner else self.who

    @property
    def shard(self) -> Shard | None:
        """The shard that it holds."""
        return None if self.claim is None or self.index is None else (self.index, self.claim.count)

    @property
    def asks(self) -> bool:
        """It trains whichever shard it is given."""
        return self.claim is not None and self.claim.asks

    def claims(self, claim: Claim | None) -> None:
        """Note what it says about shards."""
        self.claim, self.index = claim, None if claim is None or claim.asks else claim.index

    def known(self, owed: int | None) -> Known:
        seat = self.id, self.name, self.ordinal, self.extended, self.counted, owed, self.owner
        shard = (self.claim.count, self.index, self.claim.asks) if self.claim else ()
        return Known(*seat, self.selected_rounds, self.counted_rounds, self.evaluates, *shard)

    def rolled_back(self, newest: int) -> None:
        """Training goes on behind round `newest`: nothing is owed or counted beyond the round that comes now."""
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
