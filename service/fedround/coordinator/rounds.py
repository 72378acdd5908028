"""The coordinator's core: when a round begins and ends, and which call to the books is due. No I/O, no clock.

The rules (`registrations.py` has those of participants, `ending.py` those of a run's end):

1. With at least `min_clients` present, an *attempt* of the round begins. It selects ceil(ratio x present) of them at random, and
   ceil(overselect x as many) more if there are enough. A participant hears `round` only after the books admitted its token.
2. A round needs max(1, floor(ratio x min_clients)) updates. While fewer are counted or outstanding, more participants are
   selected. With fewer than `min_clients` present, no more are selected, and the round goes on with those that it has.
3. A participant loses its upload permission (deadline, time-out, departure, replacement) only by `Revoke`, and stays outstanding
   until the books answer. An update that is arriving gets at most `GRACE` seconds. Only the ledger says what was counted.
4. If none is outstanding and enough are counted, `Close` is due. If too few are counted and no more can be selected, the attempt
   has failed, as one that the books lost. The next attempt begins after a pause, which doubles while the reason lasts. Participants
   whose part was not revoked are selected again: they may have heard that their update was counted.
5. `pending` is the one call to the books that is due. It follows from the state alone. A call without an answer is repeated, and
   an answer for a former attempt changes nothing.
6. After the last round of the run, every heartbeat is answered with `finish`. Round numbers go on from run to run.
7. `Memory` survives a restart, and a new attempt of the round begins. A round is over if the books have its model. Until it is
   known who has a part in the new attempt, heartbeats are answered with `Busy`: after `stand_by`, a participant of the former
   attempt would drop what it is training.
8. The history of completed rounds (`history.py`) is for users: no decision depends on it.
9. A page of a later *generation* means that an operator made a former model the newest. Every round after it is void, and the one
   behind it is next, even if training was complete. A coordinator that remembers no generation adopts that of the page.
10. An attempt may have a *quorum* of those that it selects (`Plan.enough`), never below the number of rule 2. When so many are
    counted, no more are selected, and the others get the quorum's grace. Then the coordinator revokes them, without waiting for
    updates that are arriving. A participant that loses its part this way is *late*, which is not a failure.
11. Participants that can evaluate do so with the model that an attempt begins with, before they train (`evaluation.py`).
12. Participants may share a data set that is split into shards. One without a shard stands by: it is not selected, and does not
    count towards `min_clients` (`shards.py`).
"""

import math
from dataclasses import replace
from random import Random

from fedround import events
from fedround.common import books
from fedround.common.books import (
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
from fedround.coordinator.attempt import LATE, Attempt, Member, State
from fedround.coordinator.ending import Ending
from fedround.coordinator.evaluation import evaluated
from fedround.coordinator.history import History
from fedround.coordinator.plan import NOTHING, Memory, Plan
from fedround.coordinator.registrations import Registrations
from fedround.coordinator.seats import Participant
from fedround.coordinator.trouble import Trouble
from fedround.errors import IllegalMove


class Rounds(Registrations):
    """Follows the rules above. `now` is monotonic seconds. `memory` comes from before the restart."""

    def __init__(self, plan: Plan, rng: Random, now: float = 0.0, memory: Memory = NOTHING) -> None:
        super().__init__(plan, rng, now, memory)
        self.incarnation = ""
        """The incarnation of the ledger that was read last; empty before its first page."""
        self.after = 0
        """The number of the last ledger entry that was read."""
        self.history = History(memory.history)
        self.trouble = Trouble()
        self._generation = memory.generation
        self.ending = Ending(plan, memory, self._done)

    @property
    def memory(self) -> Memory:
        """What must survive a restart. Once training is complete it has no participants: those that heard `finish` have left."""
        known = () if self.complete else tuple(p.known(self._owed(p)) for p in self.present)
        return Memory(self.round, known, tuple(self.history), self._generation, self.run, *self.ending.memory)

    @property
    def complete(self) -> bool:
        return self.ending.complete(self._done)

    @property
    def _done(self) -> int:
        return self.round - self.run.first

    @property
    def _trained(self) -> bool:
        return self.ending.trained(self._done)

    @property
    def end(self) -> int:
        """The number of the run's last round plus 1; 0: it does not end."""
        return self.plan.rounds and self.run.first + self.plan.rounds

    def tick(self, now: float) -> None:
        """Remove participants that timed out, and revoke what is beyond its deadline."""
        self.present.drop_unheard(now)
        for participant in self.present.silent(now):
            # Those that heard `finish` have no reason to send another heartbeat.
            self._remove(now, participant, "left" if self.complete else "silent")
        self._probe(now)
        for participant in self.present.replaced(now):
            self._remove(now, participant, "replaced")
        if self.attempt is not None:
            self.attempt.expire(now, self.plan.grace)
        self._settle(now)

    def stood_still(self, now: float, seconds: float) -> None:
        """Extend time-outs and deadlines, because the process was suspended. Call this before `tick`."""
        self.present.spare(now)
        if self.attempt is not None:
            self.attempt.postpone(seconds)
        self.ending.server.until += seconds
        self._facts.append(events.Suspended(seconds))

    def next_deadline(self) -> float:
        """Return when `tick` has something to do next, if nothing else happens before; `math.inf`: never."""
        due = [self.present.next_expiry(), self.ending.server.until if self.ending.server.awaited else math.inf]
        if self.attempt is None:
            begins = self.ending.final if self._trained else self._able >= self.plan.min_clients
            due.append(self.trouble.not_before if begins else math.inf)
        elif self.attempt.opened and not self.attempt.lost:
            due.append(self.attempt.next_deadline())
        return min(due)

    # What the books say

    def pending(self, now: float) -> Call | None:
        """Return the call to the books that is due, if there is one."""
        attempt = self.attempt
        if attempt is None or not self.incarnation:
            return None
        if not attempt.opened:
            run = books.Run(self.run.id, self.run.name)
            return Open(attempt.id, attempt.round, attempt.admissions(), tuple(self._gone), run, attempt.train)
        return attempt.due(now, self.plan.required if attempt.train else 0)

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
                self._admitted(now, attempt, call)
            case Admit(), None:
                self._admitted(now, attempt, call)
            case Revoke(), Verdict():
                self._revoked(now, attempt, attempt.members[call.id], answer)
            case Close(), Closed():
                self._completed(now, attempt, answer)
            case Close(), Difference():
                self._drop(now, attempt, "the ledger has other updates than the coordinator expected")
            case _:
                raise IllegalMove(type(call).__name__, type(answer).__name__)
        self._settle(now)

    def lost(self, attempt: str) -> None:
        """The books lost this attempt. The next page of the ledger has their new incarnation, and the reason."""
        if self.attempt is not None and self.attempt.id == attempt:
            self.incarnation = ""
            self.attempt.lost = self._unsettled = True

    def recorded(self, now: float, page: Page) -> None:
        """A page of the ledger was read."""
        self.ending.server.read(page)
        if page.incarnation != self.incarnation:
            known, self.incarnation, self.after = self.incarnation, page.incarnation, 0
            before, self._generation = self._generation, page.generation
            if page.newest is not None and before is not None and page.generation > before:
                self._roll_back(now, page.newest)
            elif page.newest is not None and page.newest.round >= self.round:
                self._catch_up(now, page.newest)
            elif self.attempt is not None and (known or self.attempt.lost):
                self._unsettled = True
                reason = ": ".join(filter(None, ("the aggregator lost its sum", page.lost)))
                self._drop(now, self.attempt, reason, lasting=bool(page.lost))
            self._compare(page.newest)
        for entry in page.entries:
            if entry.seq > self.after:
                self.after = entry.seq
                self._entered(now, entry)
        self.history.measured(page.measured)
        self._settle(now)

    def take_facts(self) -> list[events.Fact]:
        """Return what happened since the last call, in order."""
        facts, self._facts = self._facts, []
        return facts

    def _settle(self, now: float) -> None:
        """Begin, widen or drop the attempt, as the rules 1, 2 and 4 say."""
        attempt = self.attempt
        self._facts += self.ending.read_server(self.round, self.run, self.history)
        if self.complete or (attempt is not None and attempt.lost):
            return
        if self.ending.stop and attempt is not None and not attempt.outstanding and len(attempt.counted) < self.plan.required:
            self._drop(now, attempt, "the run stops, and no update is outstanding")
        if self.ending.stop and self.attempt is None:
            self.ending.begin(self.round - 1, self.ending.stop)
        if self._trained:
            self._settle_final(now)
            return
        if attempt is None and len(self.present) >= self.plan.min_clients:
            self._selection.share(self.round)
            self._facts += self.shards.changed(self.present)
        if self._able < self.plan.min_clients:
            self._unsettled = False
            return
        if attempt is None:
            if now >= self.trouble.not_before:
                self.attempt = Attempt(self._selection.uuid(), self.round, begun=now)
                self._selection.select(self.attempt, self.run.first)
                if (raised := self._selection.set_quorum(self.attempt)) is not None:
                    self._facts.append(raised)
            return
        expected = len(attempt.counted) + attempt.outstanding
        if expected >= self.plan.required or self._selection.select(attempt, self.run.first) or attempt.outstanding:
            return
        why, reasons = attempt.why_too_few(self.plan.required, self.plan.round_timeout)
        self._drop(now, attempt, why, timed_out="deadline" in reasons, lasting=not reasons.isdisjoint(("refused", "failed")))

    @property
    def _able(self) -> int:
        return self._selection.able(open=self.attempt is not None)

    def _settle_final(self, now: float) -> None:
        """Begin the evaluation of the final model, or complete training, as `ending.py` says."""
        if self.ending.final and self.attempt is None and now >= self.trouble.not_before:
            self.attempt = self._selection.select_to_evaluate(now, self.round)
            self.ending.final = self.attempt is not None
        self._facts += self.ending.settle(now, self.round, self.run.first)

    def _admitted(self, now: float, attempt: Attempt, call: Open | Admit) -> None:
        if ids := attempt.admitted(call.admissions, now, self.plan.round_timeout):
            self._unsettled = False
            self._facts.append(events.Selected(attempt.round, ids, attempt.train))

    def _revoked(self, now: float, attempt: Attempt, member: Member, verdict: Verdict) -> None:
        if member.state is not State.REVOKING:
            return
        if verdict is Verdict.REVOKED:
            self._ignore(now, attempt, member)
        elif verdict is Verdict.RECEIVING:
            attempt.arriving(member, now)
        else:
            attempt.await_entry(member)

    def _ignore(self, now: float, attempt: Attempt, member: Member) -> None:
        """The part is over without an update. A departure was noted when it came."""
        self._facts.append(attempt.ignore(member))
        if member.reason not in ("left", "failed", LATE):
            judged, why = self.present.judged(member.id, member.who), member.detail or member.reason
            self._facts += self.reliability.failed(now, judged, member.name, attempt.round, why)

    def _entered(self, now: float, entry: Entry) -> None:
        attempt = self.attempt
        if attempt is None or entry.attempt != attempt.id or entry.id not in attempt.members:
            return
        member = attempt.members[entry.id]
        if entry.outcome is Outcome.REFUSED:
            member.lost_at, member.reason = now, "refused"
            member.detail = f"its update was refused: {entry.reason}" if entry.reason else ""
            self._ignore(now, attempt, member)
            return
        attempt.deliver(member, entry, now)
        self.reliability.counted(self.present.judged(member.id, member.who))
        self.present.delivered(member.id, attempt.round)
        self._facts.append(events.UpdateCounted(attempt.round, member.id, entry.samples))
        attempt.check_quorum(now, self.plan.quorum_grace)

    def _completed(self, now: float, attempt: Attempt, closed: Closed) -> None:
        if (found := evaluated(attempt)) is not None:
            self._facts.append(found)
            self.history.evaluated(found)
            self.ending.evaluated(found, self.run.first)
        if not attempt.train:
            self._end(now)
            self.ending.final = False
            return
        fact = attempt.completed(now, closed)
        self._facts.append(fact)
        self.history.completed(fact)
        self.present.completed(attempt.members, attempt.counted)
        self._go_on(now, attempt.round + 1)

    def _go_on(self, now: float, round: int) -> None:
        self._end(now)
        self.trouble, self.round = Trouble(), round
        self.ending.go_on()
        if self._trained:
            self.ending.begin(round - 1)

    def _end(self, now: float) -> None:
        if self.attempt is not None:
            self.present.freed(now, self.attempt.members)
        self.attempt = None

    def _compare(self, newest: Newest | None) -> None:
        there = -1 if newest is None else newest.round
        if there < self.round - 1:
            self._facts.append(events.ModelsLost(self.round - 1, None if newest is None else newest.round))

    def _catch_up(self, now: float, newest: Newest) -> None:
        """Complete the round of a model whose `Closed` never arrived, because one of the two services restarted."""
        if newest.run not in ("", self.run.name):  # this run begins behind the run of that model
            self.run = replace(self.run, first=newest.round + 1)
        if self.attempt is not None and self.attempt.opened and self.attempt.round == newest.round:
            self._completed(now, self.attempt, Closed(newest.parameters))
        else:
            self._go_on(now, newest.round + 1)

    def _roll_back(self, now: float, newest: Newest) -> None:
        if self.attempt is not None:
            self._drop(now, self.attempt, f"an operator went back to the model of round {newest.round}")
        self._facts.append(events.RolledBack(self.round, newest.round))
        self.reliability.rolled_back(self.round - newest.round - 1)
        self.run = replace(self.run, first=min(self.run.first, newest.round + 1))
        self.ending.roll_back(newest.round)
        self._go_on(now, newest.round + 1)
        self.history.rolled_back(newest.round)
        self.present.rolled_back(newest.round)

    def _drop(self, now: float, attempt: Attempt, reason: str, *, timed_out: bool = False, lasting: bool = False) -> None:
        self.trouble = self.trouble.after(now, reason, lasting=lasting)
        failed, counted = (self.trouble.lasting, self.trouble.not_before - now), len(attempt.counted)
        self._facts.append(events.AttemptDropped(attempt.round, attempt.id, counted, reason, timed_out, *failed))
        for participant in self.present:
            participant.owed = self._owed(participant)
        self._end(now)

    def _owed(self, participant: Participant) -> int | None:
        """The round to ask it for again if the attempt ends now: it may have heard that its update was counted."""
        member = self.attempt.members.get(participant.id) if self.attempt else None
        return participant.owed if member is None or member.state is State.IGNORED else self.round
