"""The seats of participants, and their ordinals. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass

from fedround.common.wire import Claim, Shard

Key = tuple[str, str]
"""What identifies a participant across its registrations: the kind of the identifier, and its value."""


def key_of(id: str, name: str, owner: str, *, extended: bool) -> Key:
    """Return the proved identity, or else the name; for a 0.8 participant, which sends no name, the id."""
    if owner:
        return "owner", owner
    return ("name", name) if extended else ("id", id)


@dataclass(frozen=True, slots=True)
class Known:
    """The part of a seat that survives a restart of the coordinator. See `Participant`."""

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
    """Number of shards in its claim; 0: it has none."""
    shard: int | None = None
    """Index of its shard."""
    asks: bool = False
    """Whether the coordinator assigns its shard."""

    @property
    def claim(self) -> Claim | None:
        """The claim of its registration."""
        return Claim(self.shards, self.shard, self.asks) if self.shards else None


@dataclass(slots=True)
class Participant:
    """The seat of one registration. Times are monotonic seconds."""

    id: str
    name: str
    owner: str
    """The proved identity that registered it, and that alone may act for it; empty: every authorized client may."""
    extended: bool
    """Whether the participant understands fedround's additions to the protocol."""
    ordinal: int | None
    """The lowest number that was free; None before the first heartbeat of a 0.8 participant."""
    joined: float
    """When it registered, or when the coordinator restarted."""
    seen: float
    """When it last sent a heartbeat, or received the response to one."""
    expires: float
    """When it times out."""
    present: bool = False
    """Whether it has sent a heartbeat, perhaps before a restart of the coordinator."""
    heartbeat_at: float = -math.inf
    """When it last sent a heartbeat."""
    free_since: float = 0.0
    """When its last attempt ended."""
    heartbeat_gap: float = 0.0
    """Seconds from the last response to the following heartbeat."""
    probed: float = -math.inf
    """When its last probe began."""
    probe_at: float = math.inf
    """When its next probe begins; infinite: no probe is scheduled."""
    probe_ends: float = math.inf
    """When the running probe removes it, unless it sends a heartbeat; infinite: no probe runs."""
    trouble: str = ""
    """Why it cannot reach the aggregator, for operators; empty: it can."""
    counted: int | None = None
    """The last round in which its update was counted."""
    delivered: bool = False
    """Whether an update of this seat was counted since the coordinator started."""
    owed: int | None = None
    """The round that must select it again, because a failed attempt of that round may have counted its update."""
    selected_rounds: int = 0
    """Number of completed rounds that selected it, since it joined."""
    counted_rounds: int = 0
    """Number of these rounds that counted its update."""
    evaluates: bool = False
    """Whether it can evaluate models."""
    known_to_books: bool = False
    """Whether it was ever selected. If so, the books must forget it when it is gone."""
    claim: Claim | None = None
    """Its claim about shards; None: it uses none."""
    index: int | None = None
    """Index of the shard that it holds."""

    @property
    def key(self) -> Key:
        """What identifies the participant across its registrations."""
        return key_of(self.id, self.name, self.owner, extended=self.extended)

    @property
    def failure_key(self) -> Key:
        """The key that its failures count against: without an owner, the id after a counted update (see `reliability.py`)."""
        return ("id", self.id) if self.delivered and not self.owner else self.key

    @property
    def shard(self) -> Shard | None:
        """The shard that it holds."""
        return None if self.claim is None or self.index is None else (self.index, self.claim.count)

    @property
    def asks(self) -> bool:
        """Whether the coordinator assigns its shard."""
        return self.claim is not None and self.claim.asks

    def set_claim(self, claim: Claim | None) -> None:
        """Set the claim of its registration: its fixed shard, or its request for one."""
        self.claim, self.index = claim, None if claim is None or claim.asks else claim.index

    def known(self, owed: int | None) -> Known:
        """Return the part that survives a restart. `owed` replaces that of the seat."""
        seat = self.id, self.name, self.ordinal, self.extended, self.counted, owed, self.owner
        shard = (self.claim.count, self.index, self.claim.asks) if self.claim else ()
        return Known(*seat, self.selected_rounds, self.counted_rounds, self.evaluates, *shard)

    def rolled_back(self, newest: int) -> None:
        """Go back to the model of round `newest`: discard values of later rounds."""
        if self.counted is not None and self.counted > newest:
            self.counted = newest
        if self.owed != newest + 1:
            self.owed = None


class Ordinals:
    """The ordinals that are taken."""

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
        """Make an ordinal free again."""
        self._taken.discard(ordinal)
        self._lowest_free = min(self._lowest_free, ordinal)
