"""The assignment of a data set's shards to participants. Part of the coordinator's core: no I/O, no clock.

The rules:

1. A participant registers with a *fixed* shard, asks for a shard, or does neither. Participants that name the same number of
   shards share one data set. The other rules apply to these.
2. A participant that asks keeps its shard while it is present, except by rules 4 and 5.
3. The coordinator assigns shards only before a selection. It gives the lowest free shard to the participant without one that has
   been present for longest. A participant that had a free shard before its restart gets that one first. When no shard is free, the
   others *stand by*: no attempt selects them, and they do not count towards `min_clients`.
4. A fixed shard has priority over an assigned one. If two participants have the same fixed shard, both train it, and `Coverage`
   has a warning.
5. A participant that sits out, or that lost its part in the open attempt, loses its shard to one that stands by.
6. In one attempt, no two participants that ask train the same shard. So a replacement trains the shard of the participant that it
   replaces.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedround.coordinator.attempt import Member, State
from fedround.coordinator.presence import Presence
from fedround.coordinator.seats import Participant
from fedround.events import ShardsChanged

SHOWN = 10
"""Maximum number of shards in a warning."""

SitsOut = Callable[[Participant], bool]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The shards that participants hold. If participants disagree on the number of shards, the most common number applies."""

    count: int = 0
    """The number of shards; 0: no participant has one."""
    missing: tuple[int, ...] = ()
    """Shards without a participant."""
    doubled: tuple[int, ...] = ()
    """Shards with two participants or more."""
    standing_by: int = 0
    """Number of participants without a shard."""
    other_counts: tuple[int, ...] = ()
    """Other numbers of shards, from participants that disagree."""

    @property
    def warning(self) -> str:
        """The problem, for operators; empty if there is none."""
        missing, doubled = (f"{_named(shards)} of {self.count}" for shards in (self.missing, self.doubled))
        counts = ", ".join(map(str, (self.count, *self.other_counts)))
        wrong = [
            f"no participant holds {missing}: training leaves out its data" if self.missing else "",
            f"more than one participant holds {doubled}: its data counts more than once" if self.doubled else "",
            f"participants disagree on the number of shards ({counts}): correct PARTICIPANT_SHARDS" if self.other_counts else "",
        ]
        return "; ".join(filter(None, wrong))


def coverage(present: Presence) -> Coverage:
    """Return which shards the present participants hold."""
    groups = _groups(present)
    if not groups:
        return Coverage()
    count = max(groups, key=lambda count: (len(groups[count]), count))
    holders = Counter(p.index for p in groups[count])
    return Coverage(
        count=count,
        missing=tuple(index for index in range(count) if not holders[index]),
        doubled=tuple(index for index in range(count) if holders[index] > 1),
        standing_by=sum(map(_beyond, groups, groups.values())),
        other_counts=tuple(sorted(groups.keys() - {count})),
    )


class Shards:
    """The assignment of shards, by the rules above."""

    def __init__(self) -> None:
        self.standing_by = 0
        """Number of participants without a shard at the last assignment."""
        self._reported = Coverage()

    def assign(
        self, present: Presence, waiting: Iterable[Participant], sits_out: SitsOut, members: Iterable[Member] = ()
    ) -> set[str]:
        """Assign shards. Return the ids of the participants that cannot train now.

        Args:
            present: All present participants.
            waiting: The participants that the attempt may select.
            sits_out: Returns whether a participant sits out.
            members: The members of the open attempt.
        """
        idle: set[str] = set()
        for count, group in _groups(present).items():
            live = [m for m in members if m.state is not State.IGNORED and m.shard and m.shard[1] == count]
            here = [p for p in waiting if p.claim and p.claim.count == count]
            idle |= _assign(count, group, here, {m.shard[0]: m.asks for m in live if m.shard}, sits_out)
        self.standing_by = coverage(present).standing_by
        return idle

    def changed(self, present: Presence) -> list[ShardsChanged]:
        """Return a fact if the coverage has changed since the last call."""
        now, reported = coverage(present), self._reported
        self._reported = now
        if now == reported or not now.count:
            return []
        return [ShardsChanged(now.count, len(now.missing), len(now.doubled), now.standing_by, now.warning)]


def _assign(
    count: int, group: Sequence[Participant], here: Sequence[Participant], trained: Mapping[int, bool], sits_out: SitsOut
) -> set[str]:
    """Assign the shards of one data set. Return the ids of the participants that cannot train now.

    Args:
        count: Number of shards.
        group: The participants that share the data set.
        here: Those that the attempt may select.
        trained: The shards of the attempt's members, and whether the member asked for its shard.
        sits_out: Returns whether a participant sits out.
    """
    fixed = [p for p in here if not p.asks]
    able, resting = ([p for p in here if p.asks and sits_out(p) is out] for out in (False, True))
    free = set(range(count)) - trained.keys() - {p.index for p in fixed if not sits_out(p)}
    takes: dict[str, int] = {}

    def take(p: Participant, index: int | None) -> None:
        if index is not None and index in free and p.id not in takes:
            free.remove(index)
            takes[p.id] = index

    for p in able:
        take(p, p.index)
    for p in able:
        take(p, p.claim.index if p.claim else None)
    idle = {p.index for p in group if p.id not in takes}  # shards whose holder cannot train now
    spare = iter(sorted(free, key=lambda index: (index in idle, index)))
    for p in able:
        if p.id not in takes:
            take(p, next(spare, None))
    for p in resting:
        take(p, p.index)
    for p in resting:
        take(p, min(free - idle, default=None))
    _hold(group, takes)
    second = {p.id for p in fixed if trained.get(p.index or 0) or (sits_out(p) and p.index in takes.values())}
    return second | {p.id for p in (*able, *resting) if p.id not in takes}


def _hold(group: Sequence[Participant], takes: Mapping[str, int]) -> None:
    """Give each participant the shard that it takes. The others keep theirs, unless another participant takes it."""
    for p in group:
        p.index = takes.get(p.id, p.index)
    holders = Counter(p.index for p in group)
    for p in group:
        if p.asks and p.id not in takes and holders[p.index] > 1:
            p.index = None


def _beyond(count: int, group: Sequence[Participant]) -> int:
    """Return the number of participants that ask for a shard and find none free."""
    return max(sum(p.asks for p in group) - count + len({p.index for p in group if not p.asks}), 0)


def _groups(present: Presence) -> dict[int, list[Participant]]:
    """Return the participants that use shards, by the number of shards that they name."""
    groups: dict[int, list[Participant]] = defaultdict(list)
    for p in present if present.with_shards else ():  # do not visit thousands of participants without shards
        if p.claim is not None:
            groups[p.claim.count].append(p)
    return groups


def _named(shards: Sequence[int]) -> str:
    shown = ", ".join(map(str, shards[:SHOWN])) + (f" and {len(shards) - SHOWN} more" if len(shards) > SHOWN else "")
    return f"shard {shown}" if len(shards) == 1 else f"shards {shown}"
