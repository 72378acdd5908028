"""Who trains which part of a split data set. Part of the coordinator's core: no I/O, no clock.

The rules:

1. A participant that registers says which shard it has (*fixed*), or asks for one, or neither. Those that say the same number of
   shards share one data set. What follows is about them.
2. A participant that asks keeps its shard as long as it is present. It loses the shard only as rules 4 and 5 say.
3. Shards change only before participants are selected. A free shard goes to a participant that asks and has none: the lowest shard
   first, the participant that has been there longest first; one that had that shard in a former life goes before.
   Once every shard has a participant, the others *stand by*: they are not selected, and do not count towards `min_clients`.
4. The participant with a fixed shard goes before the one that asked. If two participants have the same fixed shard, both train it,
   and `Coverage` warns.
5. A participant that sits out, or that lost its part in the open attempt, gives its shard to one that stands by, if there is one.
6. In an attempt a participant that asks is selected only with a shard that nobody else trains in this attempt, or has trained.
   So whoever is selected in the place of another one trains the shard of that one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedround.coordinator.attempt import Member, State
from fedround.coordinator.presence import Presence
from fedround.coordinator.seats import Participant
from fedround.events import ShardsChanged

SHOWN = 10
"""Shards that a warning names."""

SitsOut = Callable[[Participant], bool]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many participants hold each shard. Of several numbers of shards: the one that most participants say."""

    count: int = 0
    """The number of shards; 0: no participant has one."""
    missing: tuple[int, ...] = ()
    """Shards without a participant."""
    doubled: tuple[int, ...] = ()
    """Shards with two participants or more."""
    standing_by: int = 0
    """Participants for which there is no shard."""
    other_counts: tuple[int, ...] = ()
    """What other participants say that the number of shards is."""

    @property
    def warning(self) -> str:
        """What is wrong, for people; empty where nothing is."""
        missing, doubled = (f"{_named(shards)} of {self.count}" for shards in (self.missing, self.doubled))
        counts = ", ".join(map(str, (self.count, *self.other_counts)))
        wrong = [
            f"no participant holds {missing}: what is in it is not trained on" if self.missing else "",
            f"more than one participant holds {doubled}: what is in it counts twice" if self.doubled else "",
            f"participants disagree on the number of shards ({counts}): see PARTICIPANT_SHARDS" if self.other_counts else "",
        ]
        return "; ".join(filter(None, wrong))


def coverage(present: Presence) -> Coverage:
    """Say how the shards are held."""
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
    """The shards, and what was said of them."""

    def __init__(self) -> None:
        self.standing_by = 0
        """Participants for which there was no shard when shards were assigned last."""
        self._told = Coverage()

    def assign(
        self, present: Presence, waiting: Iterable[Participant], sits_out: SitsOut, members: Iterable[Member] = ()
    ) -> set[str]:
        """Give shards to those that ask, as the rules say. Return the ids of those that have nothing to train now.

        `waiting` are those that can be selected, `members` those of the open attempt.
        """
        idle: set[str] = set()
        for count, group in _groups(present).items():
            live = [m for m in members if m.state is not State.IGNORED and m.shard and m.shard[1] == count]
            here = [p for p in waiting if p.claim and p.claim.count == count]
            idle |= _assign(count, group, here, {m.shard[0]: m.asks for m in live if m.shard}, sits_out)
        self.standing_by = coverage(present).standing_by
        return idle

    def changed(self, present: Presence) -> list[ShardsChanged]:
        """Return the fact that the shards are held in another way than it said last, where they are."""
        now, told = coverage(present), self._told
        self._told = now
        if now == told or not now.count:
            return []
        return [ShardsChanged(now.count, len(now.missing), len(now.doubled), now.standing_by, now.warning)]


def _assign(
    count: int, group: Sequence[Participant], here: Sequence[Participant], trained: Mapping[int, bool], sits_out: SitsOut
) -> set[str]:
    """Assign the shards of the `group` that says `count`, to those that can be selected (`here`).

    `trained`: by members of the attempt, and whether such a member asked for its shard.
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
    idle_holders = {p.index for p in group if p.id not in takes}  # who cannot train it now
    spare = iter(sorted(free, key=lambda index: (index in idle_holders, index)))
    for p in able:
        if p.id not in takes:
            take(p, next(spare, None))
    for p in resting:
        take(p, p.index)
    for p in resting:
        take(p, min(free - idle_holders, default=None))
    _hold(group, takes)
    second = {p.id for p in fixed if trained.get(p.index or 0) or (sits_out(p) and p.index in takes.values())}
    return second | {p.id for p in (*able, *resting) if p.id not in takes}


def _hold(group: Sequence[Participant], takes: Mapping[str, int]) -> None:
    """Have each hold what it takes. Those that take nothing keep their shard unless another one holds it now."""
    for p in group:
        p.index = takes.get(p.id, p.index)
    holders = Counter(p.index for p in group)
    for p in group:
        if p.asks and p.id not in takes and holders[p.index] > 1:
            p.index = None


def _beyond(count: int, group: Sequence[Participant]) -> int:
    """Return how many more ask for a shard than there are shards for them."""
    return max(sum(p.asks for p in group) - count + len({p.index for p in group if not p.asks}), 0)


def _groups(present: Presence) -> dict[int, list[Participant]]:
    """Those that have to do with shards, by the number of shards that they say."""
    groups: dict[int, list[Participant]] = defaultdict(list)
    for p in present if present.sharing else ():  # of thousands that have not: at once
        if p.claim is not None:
            groups[p.claim.count].append(p)
    return groups


def _named(shards: Sequence[int]) -> str:
    shown = ", ".join(map(str, shards[:SHOWN])) + (f" and {len(shards) - SHOWN} more" if len(shards) > SHOWN else "")
    return f"shard {shown}" if len(shards) == 1 else f"shards {shown}"
