"""The coordinator's core: who is selected, what was counted, and which call to the books is due. No I/O, no clock.

The rules:

1. Who joins is Waiting. Nobody heard of for the heartbeat time-out is gone, unless we were deaf; who leaves is gone at once. Rounds
   count from 0.
2. With at least `min_clients` present an *attempt* of the round begins: ceil(ratio x present) of them, drawn uniformly, are
   chosen. A chosen participant is told `round` only when the books have admitted its token.
3. Required are max(1, floor(ratio x min_clients)) updates. While counted and outstanding are fewer, others are chosen from the
   Waiting. Fewer than `min_clients` present: nobody new is chosen, but the round goes on with who has it.
4. An outstanding right is taken back (deadline, silence, leaving) only by `Revoke`, and stays outstanding until the books have
   answered. What was counted is what the ledger's entries say, and nothing else.
5. Nobody outstanding and enough counted: `Close`. Nobody outstanding, too few counted and nobody left to choose: the attempt is
   dropped and the round tried anew. So with an attempt that the books lost. Whoever has a part that was not taken back is chosen
   again, and delivers its kept update: it may have been told that this was counted, be its entry read or not.
6. `pending` is the one call to the books that is due. It follows from the state alone: a call that got no answer is just made
   again, and an answer for an attempt that is over changes nothing.
7. After the last round everybody is told `finish`, for ever.
8. Who joins under the name of one who has a part in the attempt may be that one after a restart, and its update counted already:
   it is chosen in the next attempt, or when the other was heard of for so long that they must be two.
9. `Memory` is what survives a restart: it begins a new attempt of the round. Whatever the round was, one whose model the books
   have is over; one that was completed stays so, and it is told if its model is gone. Until it is known whether a participant of
   the attempt before has its part in the next, it is told to ask again (`Busy`): with `stand_by` it would throw away what it is
   training.
10. A seat remembers the proved identity that registered it, its owner. Nobody else may act for it; a seat without an owner serves
   everybody that is let in. An unknown id is answered alike for everybody.
11. What is remembered of rounds that are over (`history.py`) is for people: nothing follows from it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from uuid import UUID

from fedround import events
from fedround.books import (
    Admission,
    Admit,
    Answer,
    Call,
    Close,
    Closed,
    Difference,
    Entry,
    Newest,
    Open,
    Outcome,
    Page,
    Revoke,
    Verdict,
)
from fedround.coordinator.attempt import Attempt, Member, State
from fedround.coordinator.history import History, Past, weighted_means
from fedround.coordinator.presence import Known, Participant, Presence
from fedround.errors import Busy, Forbidden, IllegalMove
from fedround.wire import Heartbeat, HeartbeatState

ASK_AGAIN = 1.0
"""Seconds until a right whose update is being received is revoked again."""
PAUSE = 1.0
"""Seconds between a dropped attempt and the next: one that must fail, whatever the reason, does not make the platform spin."""
RETURN = 30.0
"""Seconds that the participants of before a restart have at least to be heard of."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained. Times in seconds; `rounds` 0 never ends."""

    rounds: int = 10
    participants_ratio: float = 1.0
    min_clients: int = 1
    heartbeat_timeout: float = 15.0
    round_timeout: float = 3600.0

    @property
    def required(self) -> int:
        return max(1, math.floor(self.participants_ratio * self.min_clients + 1e-9))

    def wanted(self, present: int) -> int:
        return max(1, math.ceil(self.participants_ratio * present - 1e-9))


@dataclass(frozen=True, slots=True)
class Memory:
    """What a coordinator knows after a restart."""

    round: int = 0
    participants: tuple[Known, ...] = ()
    history: tuple[Past, ...] = ()


class Rounds:
    """See the rules above. Every method takes `now`, monotonic seconds, first. `memory` is of the life before."""

    def __init__(self, plan: Plan, rng: Random, now: float = 0.0, memory: Memory = Memory()) -> None:
        self.plan = plan
        self.round = memory.round
        self.incarnation = ""
        """Of the books, as far as their ledger was read; empty before its first page."""
        self.after = 0
        """The number of the last ledger entry that was read."""
        self.history = History(memory.history)
        self._rng = rng
        self.present = Presence(plan.heartbeat_timeout)
        self._gone: list[str] = []
        self.attempt: Attempt | None = None
        self._not_before = 0.0
        self._facts: list[events.Fact] = []
        self._unsettled = bool(memory.participants)
        """It is not known yet who of an attempt that is gone has a part in the next."""
        for known in memory.participants:
            back = self.present.add(
                now, known.id, known.name, known.ordinal, extended=known.extended, owner=known.owner, grace=RETURN
            )
            back.counted, back.owed, back.known_to_books = known.counted, known.owed, True

    @property
    def memory(self) -> Memory:
        """What is worth to be known after a restart. When training is complete, nobody: who was told `finish` is gone."""
        present = () if self.complete else self.present
        known = (Known(p.id, p.name, p.ordinal, p.extended, p.counted, self._owed(p), p.owner) for p in present)
        return Memory(self.round, tuple(known), tuple(self.history))

    @property
    def complete(self) -> bool:
        return 0 < self.plan.rounds <= self.round

    # What participants say

    def join(
        self, now: float, name: str, ordinal: int | None = None, *, extended: bool = False, owner: str = ""
    ) -> Participant | None:
        """Register a participant; None once training is complete.

        `ordinal` is the one it held before, given back if it is free; `owner` its proved identity, empty where it proves none.
        """
        if self.complete:
            return None
        participant = self.present.add(now, self._uuid(), name, ordinal, extended=extended, owner=owner)
        self._facts.append(events.ParticipantJoined(participant.id, name))
        self._settle(now)
        return participant

    def authorize(self, id: str, owner: str) -> None:
        """Check that a request with the proved identity `owner` may act for this id. Raises `Forbidden`."""
        participant = self.present.get(id)
        if participant is not None and participant.owner not in ("", owner):
            raise Forbidden

    def heartbeat(self, now: float, id: str, *, idle: bool = False) -> Heartbeat:
        """Re-arm the participant's time-out and say what it shall do; for ROUND with its token. `idle`: it trains nothing.

        Raises `Busy`: it shall ask again.
        """
        participant = self.present.touch(now, id)
        if self.complete:
            return Heartbeat(HeartbeatState.FINISH)
        if participant is None:
            return Heartbeat(HeartbeatState.REJECT)
        member = self._told(id)
        if self.attempt is None or member is None:
            if self._unsettled and participant.extended and not idle:
                raise Busy("the round begins anew in a moment", retry_after=1.0)
            return Heartbeat(HeartbeatState.STAND_BY, counted=participant.counted)
        return Heartbeat(HeartbeatState.ROUND, self.attempt.round, token=member.token, counted=participant.counted)

    def start_training(self, now: float, id: str) -> str | None:
        """The token of a selected participant, the same one however often it asks; None for everybody else."""
        member = self._told(id)
        return None if member is None or id not in self.present else member.token

    def extended(self, id: str) -> bool:
        """Whether it is one of ours, which understands additions to the protocol."""
        participant = self.present.get(id)
        return participant is not None and participant.extended

    def leave(self, now: float, id: str) -> bool:
        """It says good-bye; False when nobody knows it."""
        if id not in self.present:
            return False
        self._remove(now, id, "left")
        self._settle(now)
        return True

    def tick(self, now: float) -> None:
        """Time has passed: see who is silent, and whose deadline is over."""
        for id in self.present.silent(now):
            # Who was told `finish` has no reason to be heard of again.
            self._remove(now, id, "left" if self.complete else "silent")
        attempt = self.attempt
        while attempt is not None and attempt.deadlines and attempt.deadlines[0][0] <= now:
            _, id = heappop(attempt.deadlines)
            member = attempt.members[id]
            if member.state is State.SELECTED and member.deadline <= now:
                self._take_back(now, attempt, member, "deadline")
        self._settle(now)

    def stood_still(self, now: float, seconds: float) -> None:
        """The process did not run for so long: neither silence nor deadline goes on in it. To be called before `tick`."""
        self.present.spare(now)
        if self.attempt is not None:
            for member in self.attempt.by_state[State.SELECTED].values():
                member.deadline += seconds
                heappush(self.attempt.deadlines, (member.deadline, member.id))
        self._facts.append(events.StoodStill(seconds))

    def next_deadline(self) -> float:
        """When `tick` has something to do next, if nothing else happens before; `math.inf`: never."""
        due = [self.present.next_expiry()]
        if self.attempt is None:
            due.append(self._not_before if len(self.present) >= self.plan.min_clients and not self.complete else math.inf)
        elif self.attempt.opened:
            due += [m.ask_at for m in self.attempt.by_state[State.REVOKING].values()]
            due += [self.attempt.deadlines[0][0]] if self.attempt.deadlines else []
        return min(due)

    # What the books say

    def pending(self, now: float) -> Call | None:
        """The call to the books that is due, if there is one."""
        attempt = self.attempt
        if attempt is None or not self.incarnation:
            return None
        if not attempt.opened:
            return Open(attempt.id, attempt.round, attempt.admissions(), tuple(self._gone))
        if attempt.by_state[State.CHOSEN]:
            return Admit(attempt.id, attempt.admissions())
        for member in attempt.by_state[State.REVOKING].values():
            if member.ask_at <= now:
                return Revoke(attempt.id, member.id)
        if not attempt.outstanding and len(attempt.counted) >= self.plan.required:
            return Close(attempt.id, tuple(attempt.counted))
        return None

    def answered(self, now: float, call: Call, answer: Answer) -> None:
        """The books carried out `call`."""
        attempt = self.attempt
        if attempt is None or attempt.id != call.attempt:
            return
        match call, answer:
            case Open(), None:
                attempt.opened, attempt.begun = True, now
                forgotten = frozenset(call.forget)
                self._gone = [id for id in self._gone if id not in forgotten]
                self._facts.append(events.AttemptOpened(attempt.round, attempt.id))
                self._admitted(now, attempt, call.admissions)
            case Admit(), None:
                self._admitted(now, attempt, call.admissions)
            case Revoke(), Verdict():
                self._revoked(now, attempt, attempt.members[call.id], answer)
            case Close(), Closed():
                self._completed(now, attempt, answer)
            case Close(), Difference():
                self._drop(now, attempt, "the ledger holds other updates than the coordinator was told of")
            case _:
                raise IllegalMove(type(call).__name__, type(answer).__name__)
        self._settle(now)

    def lost(self, now: float, attempt: str) -> None:
        """The books do not know this attempt any more. Which life they are in now, the next page of the ledger tells."""
        if self.attempt is not None and self.attempt.id == attempt:
            self.incarnation = ""
            self._lose(now, self.attempt)
            self._settle(now)

    def recorded(self, now: float, page: Page) -> None:
        """A page of the ledger was read."""
        if page.incarnation != self.incarnation:
            known, self.incarnation, self.after = self.incarnation, page.incarnation, 0
            if page.newest is not None and page.newest.round >= self.round:
                self._catch_up(now, page.newest)
            elif known and self.attempt is not None:
                self._lose(now, self.attempt)
            self._compare(page.newest)
        for entry in page.entries:
            if entry.seq > self.after:
                self.after = entry.seq
                self._entered(entry)
        for measured in page.measured:
            self.history.measured(measured)
        self._settle(now)

    # What observers and people are told

    def take_facts(self) -> list[events.Fact]:
        """What happened since the last call, in order."""
        facts, self._facts = self._facts, []
        return facts

    # How it is done

    def _told(self, id: str) -> Member | None:
        """The part of one who is to be told `round`."""
        member = None if self.attempt is None else self.attempt.members.get(id)
        return member if member is not None and member.state in (State.SELECTED, State.REVOKING) else None

    def _settle(self, now: float) -> None:
        """Begin, widen or drop the attempt, as the rules 2, 3 and 5 say."""
        if self.complete:
            return
        if len(self.present) < self.plan.min_clients:
            self._unsettled = False
            return
        attempt = self.attempt
        if attempt is None:
            if now >= self._not_before:
                self.attempt = Attempt(self._uuid(), self.round, begun=now)
                self._choose(self.attempt)
            return
        expected = len(attempt.counted) + attempt.outstanding
        if expected >= self.plan.required or self._choose(attempt) or attempt.outstanding:
            return
        reasons = {member.reason for member in attempt.by_state[State.IGNORED].values()}
        self._drop(now, attempt, self._why_nobody_is_left(attempt, reasons), timed_out="deadline" in reasons)

    def _choose(self, attempt: Attempt) -> bool:
        """Choose among the Waiting up to the wanted number, first those who are owed it; False when none is Waiting."""
        heard, sure = self._heard_by_name(attempt), self.plan.heartbeat_timeout
        waiting = [
            p
            for p in self.present
            if p.id not in attempt.members and not (p.extended and heard.get(p.name, math.inf) < p.joined + sure)
        ]
        expected = len(attempt.counted) + attempt.outstanding
        wanted = max(self.plan.wanted(len(self.present)), self.plan.required) - expected
        chosen = [p for p in waiting if p.owed == attempt.round]
        others = [p for p in waiting if p.owed != attempt.round]
        chosen += self._rng.sample(others, min(max(wanted - len(chosen), 0), len(others)))
        for p in chosen:
            p.known_to_books = True
            attempt.move(Member(p.id, p.name, self._uuid(), p.owner, State.CHOSEN), State.CHOSEN)
        return bool(chosen)

    def _heard_by_name(self, attempt: Attempt) -> dict[str, float]:
        """When those who have a part in the attempt were last heard of, by their names; of several with one name, the least."""
        heard: dict[str, float] = {}
        for member in attempt.members.values():
            participant = self.present.get(member.id)
            if member.state is not State.IGNORED:
                heard[member.name] = min(heard.get(member.name, math.inf), participant.seen if participant else -math.inf)
        return heard

    def _admitted(self, now: float, attempt: Attempt, admissions: Iterable[Admission]) -> None:
        members = [attempt.members[a.id] for a in admissions]
        selected = [m for m in members if m.state is State.CHOSEN]
        for member in selected:
            member.deadline = now + self.plan.round_timeout
            heappush(attempt.deadlines, (member.deadline, member.id))
            attempt.move(member, State.SELECTED)
        if selected:
            self._unsettled = False
            self._facts.append(events.Selected(attempt.round, tuple(m.id for m in selected)))

    def _revoked(self, now: float, attempt: Attempt, member: Member, verdict: Verdict) -> None:
        if member.state is not State.REVOKING:
            return
        if verdict is Verdict.REVOKED:
            attempt.move(member, State.IGNORED)
            self._facts.append(events.Revoked(attempt.round, member.id, member.reason))
        elif verdict is Verdict.RECEIVING:
            member.ask_at = now + ASK_AGAIN
        else:
            # It was counted: its entry is on the way, and tells the samples and figures too.
            member.deadline = math.inf
            attempt.move(member, State.SELECTED)

    def _entered(self, entry: Entry) -> None:
        attempt = self.attempt
        if attempt is None or entry.attempt != attempt.id or entry.id not in attempt.members:
            return
        member = attempt.members[entry.id]
        if entry.outcome is Outcome.REFUSED:
            member.reason = "refused"
            attempt.move(member, State.IGNORED)
            self._facts.append(events.Revoked(attempt.round, member.id, "refused"))
            return
        member.entry = entry
        attempt.move(member, State.DONE)
        if (participant := self.present.get(member.id)) is not None:
            participant.counted = attempt.round
        self._facts.append(events.UpdateCounted(attempt.round, member.id, entry.samples))

    def _completed(self, now: float, attempt: Attempt, closed: Closed) -> None:
        entries = [m.entry for m in attempt.counted.values() if m.entry is not None]
        fact = events.RoundCompleted(
            round=attempt.round,
            attempt=attempt.id,
            ids=tuple(attempt.counted),
            dropped=len(attempt.by_state[State.IGNORED]),
            samples=sum(e.samples for e in entries),
            parameters=closed.parameters,
            seconds=now - attempt.begun,
            figures=weighted_means(entries),
        )
        self._facts.append(fact)
        self.history.completed(fact)
        self.attempt = None
        self._not_before = now
        self.round += 1
        if self.complete:
            self._facts.append(events.TrainingCompleted(self.round))

    def _compare(self, newest: Newest | None) -> None:
        there = -1 if newest is None else newest.round
        if there < self.round - 1:
            self._facts.append(events.ModelsLost(self.round - 1, None if newest is None else newest.round))

    def _catch_up(self, now: float, newest: Newest) -> None:
        """A model was made of the round, but we were not told: the aggregator or we ourselves died in between."""
        if self.attempt is not None and self.attempt.opened and self.attempt.round == newest.round:
            self._completed(now, self.attempt, Closed(newest.parameters))
            return
        self.attempt = None
        self.round = newest.round + 1
        if self.complete:
            self._facts.append(events.TrainingCompleted(self.round))

    def _lose(self, now: float, attempt: Attempt) -> None:
        self._drop(now, attempt, "the aggregator lost its sum")
        self._unsettled = True

    def _drop(self, now: float, attempt: Attempt, reason: str, *, timed_out: bool = False) -> None:
        self._facts.append(events.AttemptDropped(attempt.round, attempt.id, len(attempt.counted), reason, timed_out))
        for participant in self.present:
            participant.owed = self._owed(participant)
        self.attempt = None
        self._not_before = now + PAUSE

    def _owed(self, participant: Participant) -> int | None:
        """Of which round it is asked again, should the attempt end now: who has a part may have been told that it was counted."""
        member = self.attempt.members.get(participant.id) if self.attempt else None
        return participant.owed if member is None or member.state is State.IGNORED else self.round

    def _why_nobody_is_left(self, attempt: Attempt, reasons: set[str]) -> str:
        if "deadline" in reasons:
            return (
                f"too few delivered within {self.plan.round_timeout:g} s: is COORDINATOR_ROUND_TIMEOUT shorter than training takes?"
            )
        return f"too few delivered ({len(attempt.counted)} of {self.plan.required}): the others' rounds ended as " + (
            " and ".join(sorted(reasons)) or "unknown"
        )

    def _remove(self, now: float, id: str, reason: str) -> None:
        participant = self.present.remove(now, id, missed=reason == "silent")
        if participant.known_to_books:
            self._gone.append(id)
        self._facts.append(events.ParticipantGone(id, participant.name, reason))
        attempt = self.attempt
        if attempt is not None and id in attempt.members and attempt.members[id].state in (State.CHOSEN, State.SELECTED):
            self._take_back(now, attempt, attempt.members[id], reason)

    def _take_back(self, now: float, attempt: Attempt, member: Member, reason: str) -> None:
        member.reason, member.ask_at = reason, now
        attempt.move(member, State.REVOKING)

    def _uuid(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))
