"""The coordinator's core: it decides when a round begins and ends, and which call to the books is due. No I/O, no clock.

`registrations.py` has the rules of participants, and `ending.py` those of a run's end. The rules of rounds:

1. An *attempt* of the round begins when `min_clients` participants are present. It selects ceil(ratio x present) of them at random,
   and ceil(overselect x that number) more if there are enough. The heartbeat of a participant gets `round` only after the books
   have admitted its token.
2. A round requires max(1, floor(ratio x min_clients)) updates. While fewer are counted or outstanding, the attempt selects more
   participants. If fewer than `min_clients` are present, it selects no more, and continues with its members.
3. Only the call `Revoke` ends an upload permission, after a deadline, a time-out, a departure or a replacement. The update stays
   outstanding until the books answer. If it is arriving, it gets up to `UPLOAD_GRACE` seconds. Only the ledger decides whether it
   was counted.
4. When no update is outstanding and enough are counted, `Close` is due. If too few are counted and no more participants can be
   selected, the attempt fails. An attempt that the books lost fails too. The next attempt begins after a pause, which doubles while
   the reason lasts. It selects all members whose permission was not revoked: they may know that their update was counted.
5. `pending` returns the one call to the books that is due. It depends only on the state. The caller repeats a call without an
   answer. An answer for an earlier attempt changes nothing.
6. After the last round of the run, every heartbeat gets `finish`. Round numbers continue from run to run.
7. After a restart, `Memory` is restored and another attempt of the round begins. If the books have the model of a round, that round
   is over. While it is undecided which participants the new attempt selects, heartbeats get `Busy`. With `stand_by`, members of the
   previous attempt would discard their training.
8. The history of completed rounds (`history.py`) is for users: no decision depends on it.
9. A page with a higher *generation* means that an operator made an earlier model the newest. All rounds after that model are void,
   and the first of them is next, even if training was complete. A coordinator without a generation adopts that of the page.
10. An attempt may have a *quorum* (`Plan.effective_quorum`), at least the number of rule 2. When the quorum is counted, the attempt
    selects no more participants, and the other members get the quorum's grace. Then the coordinator revokes their permissions,
    even if their updates are arriving. Such a participant is *late*, which is not a failure.
11. Participants that can evaluate do so with the model that an attempt begins with, before they train (`evaluation.py`).
12. Participants may share a data set that is split into shards. A participant without a shard stands by: no attempt selects it, and
    it does not count towards `min_clients` (`shards.py`).
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
from fedround.coordinator.failed_attempts import FailedAttempts
from fedround.coordinator.history import History
from fedround.coordinator.plan import NO_MEMORY, Memory, Plan
from fedround.coordinator.registrations import Registrations
from fedround.coordinator.seats import Participant
from fedround.errors import IllegalMove


class Rounds(Registrations):
    """The rounds of a run, by the rules above.

    Args:
        plan: The settings of the run.
        rng: Selects participants, and makes ids and tokens.
        now: Monotonic seconds, here and in all methods.
        memory: The state from before a restart.
    """

    def __init__(self, plan: Plan, rng: Random, now: float = 0.0, memory: Memory = NO_MEMORY) -> None:
        super().__init__(plan, rng, now, memory)
        self.incarnation = ""
        """The incarnation on the last page of the ledger; empty before the first page."""
        self.after = 0
        """Number of the last ledger entry that was read."""
        self.history = History(memory.history)
        self.failed_attempts = FailedAttempts()
        self._generation = memory.generation
        self.ending = Ending(plan, memory, self._done)

    @property
    def memory(self) -> Memory:
        """The state that must survive a restart. It has no participants once training is complete: then all of them leave."""
        known = () if self.complete else tuple(p.known(self._owed(p)) for p in self.present)
        return Memory(self.round, known, tuple(self.history), self._generation, self.run, *self.ending.memory)

    @property
    def complete(self) -> bool:
        """Whether training is complete."""
        return self.ending.complete(self._done)

    @property
    def _done(self) -> int:
        """Number of completed rounds of the run."""
        return self.round - self.run.first

    @property
    def _trained(self) -> bool:
        """Whether the run has no more rounds."""
        return self.ending.trained(self._done)

    @property
    def end(self) -> int:
        """Number of the run's last round plus 1; 0: the run has no end."""
        return self.plan.rounds and self.run.first + self.plan.rounds

    def tick(self, now: float) -> None:
        """Remove participants that timed out, and begin to revoke permissions beyond their deadline."""
        self.present.expire_registrations(now)
        for participant in self.present.timed_out(now):
            # After `finish`, a participant leaves without another heartbeat.
            self._remove(now, participant, "left" if self.complete else "silent")
        self._start_probes(now)
        for participant in self.present.failed_probes(now):
            self._remove(now, participant, "replaced")
        if self.attempt is not None:
            self.attempt.expire(now, self.plan.upload_grace)
        self._advance(now)

    def suspended(self, now: float, seconds: float) -> None:
        """Extend time-outs and deadlines, because the process was suspended for `seconds`. Call this before `tick`."""
        self.present.extend_timeouts(now)
        if self.attempt is not None:
            self.attempt.extend_deadlines(seconds)
        self.ending.server.until += seconds
        self._facts.append(events.Suspended(seconds))

    def next_deadline(self) -> float:
        """Return the next time at which `tick` may have work, if nothing happens before; `math.inf`: never."""
        due = [self.present.next_expiry(), self.ending.server.until if self.ending.server.awaited else math.inf]
        if self.attempt is None:
            can_begin = self.ending.final if self._trained else self._able >= self.plan.min_clients
            due.append(self.failed_attempts.not_before if can_begin else math.inf)
        elif self.attempt.opened and not self.attempt.lost:
            due.append(self.attempt.next_deadline())
        return min(due)

    # Calls to the books, and pages of the ledger

    def pending(self, now: float) -> Call | None:
        """Return the call to the books that is due; None: no call."""
        attempt = self.attempt
        if attempt is None or not self.incarnation:
            return None
        if not attempt.opened:
            run = books.Run(self.run.id, self.run.name)
            return Open(attempt.id, attempt.round, attempt.admissions(), tuple(self._to_forget), run, attempt.train)
        return attempt.next_call(now, self.plan.required if attempt.train else 0)

    def answered(self, now: float, call: Call, answer: Answer) -> None:
        """Take the answer of the books to `call`. Raises `IllegalMove` if they do not fit together."""
        attempt = self.attempt
        if attempt is None or attempt.id != call.attempt:
            return
        match call, answer:
            case Open(), None:
                attempt.opened, attempt.begun = True, now
                forgotten = frozenset(call.forget)
                self._to_forget = [id for id in self._to_forget if id not in forgotten]
                self._facts.append(events.AttemptOpened(attempt.round, attempt.id))
                self._admitted(now, attempt, call)
            case Admit(), None:
                self._admitted(now, attempt, call)
            case Revoke(), Verdict():
                self._revoked(now, attempt, attempt.members[call.id], answer)
            case Close(), Closed():
                self._completed(now, attempt, answer)
            case Close(), Difference():
                self._fail_attempt(now, attempt, "the ledger has other updates than the coordinator expected")
            case _:
                raise IllegalMove(type(call).__name__, type(answer).__name__)
        self._advance(now)

    def lost(self, attempt: str) -> None:
        """Record that the books lost this attempt. The next page of the ledger has a new incarnation, and the reason."""
        if self.attempt is not None and self.attempt.id == attempt:
            self.incarnation = ""
            self.attempt.lost = self._undecided = True

    def recorded(self, now: float, page: Page) -> None:
        """Take a page of the ledger."""
        self.ending.server.read(page)
        if page.incarnation != self.incarnation:
            self._take_incarnation(now, page)
        for entry in page.entries:
            if entry.seq > self.after:
                self.after = entry.seq
                self._take_entry(now, entry)
        self.history.measured(page.measured)
        self._advance(now)

    def take_facts(self) -> list[events.Fact]:
        """Return the facts since the last call, in order."""
        facts, self._facts = self._facts, []
        return facts

    def _take_incarnation(self, now: float, page: Page) -> None:
        """Take the first page of an incarnation: it may report a rollback, a completed round, or a lost aggregate."""
        known, self.incarnation, self.after = self.incarnation, page.incarnation, 0
        before, self._generation = self._generation, page.generation
        if page.newest is not None and before is not None and page.generation > before:
            self._roll_back(now, page.newest)
        elif page.newest is not None and page.newest.round >= self.round:
            self._catch_up(now, page.newest)
        elif self.attempt is not None and (known or self.attempt.lost):
            self._undecided = True
            reason = ": ".join(filter(None, ("the aggregator lost the updates of this round", page.lost)))
            self._fail_attempt(now, self.attempt, reason, lasting=bool(page.lost))
        self._report_lost_models(page.newest)

    def _advance(self, now: float) -> None:
        """Begin an attempt, select more participants for it, or let it fail: rules 1, 2 and 4."""
        attempt = self.attempt
        self._facts += self.ending.read_server(self.round, self.run, self.history)
        if self.complete or (attempt is not None and attempt.lost):
            return
        if self.ending.stop and attempt is not None and not attempt.outstanding and len(attempt.counted) < self.plan.required:
            self._fail_attempt(now, attempt, "the run stops, and no update is outstanding")
        if self.ending.stop and self.attempt is None:
            self.ending.begin(self.round - 1, self.ending.stop)
        if self._trained:
            self._advance_final(now)
            return
        if attempt is None and len(self.present) >= self.plan.min_clients:
            self._selection.share(self.round)
            self._facts += self.shards.changed(self.present)
        if self._able < self.plan.min_clients:
            self._undecided = False
            return
        if attempt is None:
            if now >= self.failed_attempts.not_before:
                self.attempt = Attempt(self._selection.uuid(), self.round, begun=now)
                self._selection.select(self.attempt, self.run.first)
                if (raised := self._selection.set_quorum(self.attempt)) is not None:
                    self._facts.append(raised)
            return
        expected = len(attempt.counted) + attempt.outstanding
        if expected >= self.plan.required or self._selection.select(attempt, self.run.first) or attempt.outstanding:
            return
        why, reasons = attempt.why_too_few(self.plan.required, self.plan.round_timeout)
        self._fail_attempt(
            now, attempt, why, timed_out="deadline" in reasons, lasting=not reasons.isdisjoint(("refused", "failed"))
        )

    @property
    def _able(self) -> int:
        return self._selection.able(open=self.attempt is not None)

    def _advance_final(self, now: float) -> None:
        """Begin the evaluation of the final model, or complete training: the rules of `ending.py`."""
        if self.ending.final and self.attempt is None and now >= self.failed_attempts.not_before:
            self.attempt = self._selection.select_to_evaluate(now, self.round)
            self.ending.final = self.attempt is not None
        self._facts += self.ending.settle(now, self.round, self.run.first)

    def _admitted(self, now: float, attempt: Attempt, call: Open | Admit) -> None:
        if ids := attempt.admitted(call.admissions, now, self.plan.round_timeout):
            self._undecided = False
            self._facts.append(events.Selected(attempt.round, ids, attempt.train))

    def _revoked(self, now: float, attempt: Attempt, member: Member, verdict: Verdict) -> None:
        if member.state is not State.REVOKING:
            return
        if verdict is Verdict.REVOKED:
            self._drop_member(now, attempt, member)
        elif verdict is Verdict.RECEIVING:
            attempt.revoke_again(member, now)
        else:
            attempt.await_entry(member)

    def _drop_member(self, now: float, attempt: Attempt, member: Member) -> None:
        """End the part of a member without an update, and count a failure. `_remove` has already counted those of departures."""
        self._facts.append(attempt.ignore(member))
        if member.reason not in ("left", "failed", LATE):
            key, why = self.present.failure_key(member.id, member.key), member.detail or member.reason
            self._facts += self.reliability.failed(now, key, member.name, attempt.round, why)

    def _take_entry(self, now: float, entry: Entry) -> None:
        attempt = self.attempt
        if attempt is None or entry.attempt != attempt.id or entry.id not in attempt.members:
            return
        member = attempt.members[entry.id]
        if entry.outcome is Outcome.REFUSED:
            member.lost_at, member.reason = now, "refused"
            member.detail = f"its update was refused: {entry.reason}" if entry.reason else ""
            self._drop_member(now, attempt, member)
            return
        attempt.mark_counted(member, entry, now)
        self.reliability.counted(self.present.failure_key(member.id, member.key))
        self.present.counted(member.id, attempt.round)
        self._facts.append(events.UpdateCounted(attempt.round, member.id, entry.samples))
        attempt.check_quorum(now, self.plan.quorum_grace)

    def _completed(self, now: float, attempt: Attempt, closed: Closed) -> None:
        if (found := evaluated(attempt)) is not None:
            self._facts.append(found)
            self.history.evaluated(found)
            self.ending.evaluated(found, self.run.first)
        if not attempt.train:
            self._end_attempt(now)
            self.ending.final = False
            return
        fact = attempt.completed(now, closed)
        self._facts.append(fact)
        self.history.completed(fact)
        self.present.completed(attempt.members, attempt.counted)
        self._next_round(now, attempt.round + 1)

    def _next_round(self, now: float, round: int) -> None:
        self._end_attempt(now)
        self.failed_attempts, self.round = FailedAttempts(), round
        self.ending.go_on()
        if self._trained:
            self.ending.begin(round - 1)

    def _end_attempt(self, now: float) -> None:
        if self.attempt is not None:
            self.present.attempt_ended(now, self.attempt.members)
        self.attempt = None

    def _report_lost_models(self, newest: Newest | None) -> None:
        found = None if newest is None else newest.round
        if (-1 if found is None else found) < self.round - 1:
            self._facts.append(events.ModelsLost(self.round - 1, found))

    def _catch_up(self, now: float, newest: Newest) -> None:
        """Complete the round of a model whose `Closed` did not arrive, because coordinator or aggregator restarted."""
        if newest.run not in ("", self.run.name):  # the current run begins after that model
            self.run = replace(self.run, first=newest.round + 1)
        if self.attempt is not None and self.attempt.opened and self.attempt.round == newest.round:
            self._completed(now, self.attempt, Closed(newest.parameters))
        else:
            self._next_round(now, newest.round + 1)

    def _roll_back(self, now: float, newest: Newest) -> None:
        if self.attempt is not None:
            self._fail_attempt(now, self.attempt, f"an operator rolled back to the model of round {newest.round}")
        self._facts.append(events.RolledBack(self.round, newest.round))
        self.reliability.rolled_back(self.round - newest.round - 1)
        self.run = replace(self.run, first=min(self.run.first, newest.round + 1))
        self.ending.roll_back(newest.round)
        self._next_round(now, newest.round + 1)
        self.history.rolled_back(newest.round)
        self.present.rolled_back(newest.round)

    def _fail_attempt(self, now: float, attempt: Attempt, reason: str, *, timed_out: bool = False, lasting: bool = False) -> None:
        self.failed_attempts = self.failed_attempts.after(now, reason, lasting=lasting)
        failures, pause = self.failed_attempts.lasting, self.failed_attempts.not_before - now
        counted = len(attempt.counted)
        self._facts.append(events.AttemptDropped(attempt.round, attempt.id, counted, reason, timed_out, failures, pause))
        for participant in self.present:
            participant.owed = self._owed(participant)
        self._end_attempt(now)

    def _owed(self, participant: Participant) -> int | None:
        """Return the round that must select a participant again if the attempt ends now (rule 4); None: none."""
        member = self.attempt.members.get(participant.id) if self.attempt else None
        return participant.owed if member is None or member.state is State.IGNORED else self.round
