"""Whom an attempt of a round selects. Part of the coordinator's core: no I/O, no clock."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random

from fedround.coordinator.attempt import Attempt, Member, State
from fedround.coordinator.plan import Plan
from fedround.coordinator.presence import PROBE, Presence
from fedround.coordinator.seats import Participant, Who
from fedround.coordinator.shards import Shards


def choose(
    attempt: Attempt, present: Presence, plan: Plan, sits_out: Callable[[Participant], bool], rng: Random, shards: Shards
) -> list[Participant]:
    """Draw up to the wanted number: first those who are owed it, and those who sit out only as far as too few are left."""
    waiting = list(_waiting(attempt, present, plan))
    idle = shards.assign(present, waiting, sits_out, attempt.members.values())
    waiting = [p for p in waiting if p.id not in idle]
    expected = len(attempt.counted) + attempt.outstanding
    chosen = [p for p in waiting if p.owed == attempt.round]
    others = [p for p in waiting if p.owed != attempt.round]
    reliable = [p for p in others if not sits_out(p)]
    sitting_out = [p for p in others if sits_out(p)]
    wanted = max(plan.selected(len(present) - len(idle)), plan.required) - expected
    chosen += _draw(rng, reliable, wanted - len(chosen))
    chosen += _draw(rng, sitting_out, plan.required - expected - len(chosen))
    return chosen


def _waiting(attempt: Attempt, present: Presence, plan: Plan) -> Iterator[Participant]:
    """Those without a part in the attempt, of whom no former life may have been counted in it."""
    parts: dict[Who, list[Member]] = defaultdict(list)
    for member in attempt.members.values():
        if member.state is not State.IGNORED:
            parts[member.who].append(member)
    taken = {who: len(members) for who, members in parts.items()}
    for p in present:
        if p.id in attempt.members or any(_may_be_former(member, p, present) for member in parts.get(p.who, ())):
            continue
        if p.owner:
            taken[p.who] = taken.get(p.who, 0) + 1
            if taken[p.who] > plan.seats:
                continue
        yield p


def _may_be_former(member: Member, newcomer: Participant, present: Presence) -> bool:
    """Whether the two may be one participant before and after a restart: then the newcomer could be counted twice."""
    seat = present.get(member.id)
    return seat is None or seat.beat < newcomer.joined + PROBE


def _draw(rng: Random, candidates: list[Participant], count: int) -> list[Participant]:
    return rng.sample(candidates, min(max(count, 0), len(candidates)))
