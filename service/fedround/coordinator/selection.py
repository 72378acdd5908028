"""The selection of participants for an attempt. Part of the coordinator's core: no I/O, no clock."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random
from uuid import UUID

from fedround.coordinator.attempt import Attempt, Member, State
from fedround.coordinator.evaluation import draw
from fedround.coordinator.plan import Plan
from fedround.coordinator.presence import PROBE, Presence
from fedround.coordinator.reliability import Reliability
from fedround.coordinator.seats import Key, Participant
from fedround.coordinator.shards import Shards
from fedround.events import QuorumRaised


class Selection:
    """The random selection of participants, by the rules of `rounds.py`, `registrations.py` and `shards.py`."""

    def __init__(self, plan: Plan, present: Presence, rng: Random) -> None:
        self.reliability, self.shards = Reliability(), Shards()
        self._plan, self._present, self._rng = plan, present, rng
        self._quorum_raised = 0

    def uuid(self) -> str:
        """Return a random id or token."""
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    def able(self, *, open: bool) -> int:
        """Return the number of present participants. Unless an attempt is `open`, exclude those that stand by."""
        return len(self._present) - (0 if open else self.shards.standing_by)

    def share(self, round: int) -> set[str]:
        """Assign shards before an attempt. Return the ids of the participants that cannot train."""
        return self.shards.assign(self._present, self._present, lambda p: self._sits_out(p, round))

    def select(self, attempt: Attempt, first: int) -> bool:
        """Select more participants for an attempt. Return False if there are none. `first` is the run's first round."""
        chosen = self._choose(attempt)
        due = self._plan.evaluates(attempt.round - first)
        self._take(attempt, chosen, draw(self._rng, self._plan.evaluate_ratio, chosen) if due else ())
        return bool(chosen)

    def select_to_evaluate(self, now: float, round: int) -> Attempt | None:
        """Return an attempt without training that evaluates the final model; None if no participant can evaluate."""
        idle, ratio = self.share(round), self._plan.evaluate_ratio if self._plan.evaluate_every else 0.0
        able = draw(self._rng, ratio, [p for p in self._present if p.id not in idle])
        if not able:
            return None
        attempt = Attempt(self.uuid(), round, begun=now, train=False)
        attempt.quorum = self._plan.configured_quorum(len(self._present), len(able))
        self._take(attempt, able, able)
        return attempt

    def set_quorum(self, attempt: Attempt) -> QuorumRaised | None:
        """Set the quorum of a new attempt. Return a fact the second time that `min_clients` makes the quorum ineffective."""
        present, selected = len(self._present), attempt.outstanding
        attempt.quorum = self._plan.effective_quorum(present, selected)
        configured = self._plan.configured_quorum(present, selected)
        if configured is None or not configured < selected <= self._plan.required:
            return None
        self._quorum_raised += 1
        # Not the first time: the first round may begin before all participants have joined.
        return QuorumRaised(attempt.round, configured, selected, self._plan.min_clients) if self._quorum_raised == 2 else None

    def _sits_out(self, participant: Participant, round: int) -> bool:
        return self.reliability.sits_out(participant.failure_key, round)

    def _take(self, attempt: Attempt, chosen: Sequence[Participant], evaluating: Sequence[Participant]) -> None:
        for p in chosen:
            p.known_to_books = True
            member = Member.of(p, self.uuid())
            member.evaluates = p in evaluating
            attempt.move(member, State.CHOSEN)

    def _choose(self, attempt: Attempt) -> list[Participant]:
        """Choose up to the wanted number of participants.

        Those that the round must select again (`owed`) come first. Those that sit out are chosen only if too few others are left.
        """
        plan, present = self._plan, self._present
        waiting = list(_waiting(attempt, present, plan))
        idle = self.shards.assign(present, waiting, lambda p: self._sits_out(p, attempt.round), attempt.members.values())
        waiting = [p for p in waiting if p.id not in idle]
        expected = len(attempt.counted) + attempt.outstanding
        chosen = [p for p in waiting if p.owed == attempt.round]
        others = [p for p in waiting if p.owed != attempt.round]
        reliable = [p for p in others if not self._sits_out(p, attempt.round)]
        sitting_out = [p for p in others if self._sits_out(p, attempt.round)]
        wanted = max(plan.selected(len(present) - len(idle)), plan.required) - expected
        chosen += _draw(self._rng, reliable, wanted - len(chosen))
        chosen += _draw(self._rng, sitting_out, plan.required - expected - len(chosen))
        return chosen


def _waiting(attempt: Attempt, present: Presence, plan: Plan) -> Iterator[Participant]:
    """Yield the participants that the attempt may select: not its members, and not those that may be a member after a restart."""
    parts: dict[Key, list[Member]] = defaultdict(list)
    for member in attempt.members.values():
        if member.state is not State.IGNORED:
            parts[member.key].append(member)
    taken = {key: len(members) for key, members in parts.items()}
    for p in present:
        if p.id in attempt.members or any(_may_be_former(member, p, present) for member in parts.get(p.key, ())):
            continue
        if p.owner:
            taken[p.key] = taken.get(p.key, 0) + 1
            if taken[p.key] > plan.seats:
                continue
        yield p


def _may_be_former(member: Member, newcomer: Participant, present: Presence) -> bool:
    """Return whether a member and a newcomer may be one participant before and after a restart, which must not count twice."""
    seat = present.get(member.id)
    return seat is None or seat.heartbeat_at < newcomer.joined + PROBE


def _draw(rng: Random, candidates: list[Participant], count: int) -> list[Participant]:
    return rng.sample(candidates, min(max(count, 0), len(candidates)))
