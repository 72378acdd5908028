"""The participant's lifecycle: what to do next, given what has happened. A core without I/O; time and randomness are arguments.

    registering -> waiting -> training(round) -> confirming(round) -> waiting ... -> finished | stopped

The rules (`work.py` has those of a round's exchanges):

1. One exchange with the coordinator (register, heartbeat) is under way at a time. The participant repeats a failed one after a
   jittered delay, without a limit or until `give_up_after`.
2. `reject`, at any time: the participant discards its update, and registers again: immediately, then after growing delays.
3. `round` is a training request. The participant stores its update until a later round, `reject` or `finish`.
4. Another request, or `stand_by`, while training: the coordinator reassigned the round. The participant cancels the training.
5. User code gets one model at a time; the next is not fetched while it is busy with a cancelled round. User code that does not
   return within `cancel_timeout` after it was cancelled is killed.
6. User code failed, or the global model is larger than allowed: the participant leaves, reports the reason, and registers again
   after 1, 2, 4, ... seconds. After `max_failures` consecutive failures it exits. After a round that failed otherwise it registers
   immediately.
7. `finish`: the participant exits, or asks regularly whether training continues. It never sends the old id's heartbeat again: that
   ends a 0.8 coordinator.
8. On a request to stop, the participant finishes the round if there is time, or abandons it. Then it leaves and exits. It waits
   `LEAVE_TIMEOUT` for an id that is on its way. On a second request, it exits immediately.
9. A response to an earlier id or training request is *late*, and changes nothing. A response without a request is an illegal move.

A 0.8 coordinator (its `round` brings no token) needs more care:

10. It closes no round before every selected id has delivered. So a participant whose code failed trains again under the same id.
    One that gives up a round *forfeits* it: it uploads an empty body, and 0.8 ignores the id for this round. A selected
    participant that must stop requests a token first, to forfeit with.
11. It panics when an id times out in the round that it delivered to. So after an upload, a stopping participant sends heartbeats
    until a later round, `reject` or `finish`, for as long as it might have finished a round.
"""

import math
from collections.abc import Callable
from itertools import count

from fedround import events
from fedround.common import wire
from fedround.common.wire import HeartbeatState
from fedround.errors import IllegalMove
from fedround.participant import moves as m
from fedround.participant.lane import Contact, Failures
from fedround.participant.moves import Outcome, Reason, State
from fedround.participant.work import Ended, Step, StoredUpdate, Work

LEAVE_TIMEOUT = 2.0
"""Seconds to wait for the id to leave with, and seconds for the request that leaves."""
ASK_FINISHED = 30.0
"""Seconds between two checks whether a finished training continues."""


class Lifecycle:
    """A participant that follows the rules above. The first event is `TimerFired`. `random` returns numbers from 0 up to 1."""

    def __init__(self, policy: m.Policy, random: Callable[[], float]) -> None:
        self.draining = False
        self.exited: Reason | None = None
        self._policy = policy
        self._random = random
        self._id: str | None = None
        self._finished = False
        self._legacy = False
        """Whether the coordinator speaks only 0.8, as far as is known."""
        self._work: Work | None = None
        self._stored: StoredUpdate | None = None
        self._busy: int | None = None
        """The serial of the training request that user code works on."""
        self._kill_at = math.inf
        self._serials = count(1)
        self._failures = Failures(random)
        self._register_reason = "start"
        self._contact = Contact(policy, random)
        self._stop_by = math.inf
        self._commands: list[m.Command] = []
        self._facts: list[events.Fact] = []
        self._last_state: events.StateChanged | None = None

    @property
    def state(self) -> State:
        if self.exited:
            return State.FINISHED if self.exited is Reason.FINISHED else State.STOPPED
        if self._work is not None:
            return State.CONFIRMING if self._work.confirming else State.TRAINING
        if self._id is not None:
            return State.WAITING
        return State.FINISHED if self._finished else State.REGISTERING

    @property
    def round(self) -> int | None:
        return None if self._work is None else self._work.request.round

    def next_deadline(self) -> float:
        """Return when `TimerFired` is due, if nothing else happens before."""
        due = min(self._stop_by, self._contact.give_up_at, self._contact.due, self._kill_at)
        work = self._work
        return due if work is None else min(due, work.deadline, math.inf if self._blocked(work) else work.lane.due)

    def take_facts(self) -> list[events.Fact]:
        """Return the facts since the last call, in order."""
        facts, self._facts[:] = self._facts[:], []
        return facts

    def step(self, event: m.Event, now: float) -> tuple[m.Command, ...]:
        """Return the commands after `event`, at `now` in monotonic seconds. Raises `IllegalMove`, and then changes nothing."""
        if self.exited or not self._is_current(event):
            return ()
        self._take(event, now)
        self._start_what_is_due(now)
        if (state := events.StateChanged(self.state, self.round, self.draining)) != self._last_state:
            self._last_state = state
            self._facts.append(state)
        commands, self._commands = tuple(self._commands), []
        return commands

    def _is_current(self, event: m.Event) -> bool:
        """Return False for a late event."""
        match event:
            case m.TimerFired() | m.StopRequested():
                return True
            case m.Registered() | m.RegistrationRefused() | m.RegistrationFailed():
                legal = self._contact.under_way and self._id is None
            case m.HeartbeatAnswered(id=id) | m.HeartbeatFailed(id=id):
                if id != self._id:
                    return False
                legal = self._contact.under_way
            case m.Trained(request) | m.TrainingFailed(request):
                legal = request.serial == self._busy
            case _:
                if self._work is None or event.request.serial != self._work.request.serial:
                    return False
                legal = self._work.expects(event)
        if not legal:
            raise IllegalMove(self.state, event)
        return True

    def _take(self, event: m.Event, now: float) -> None:
        match event:
            case m.TimerFired():
                self._timer_fired(now)
            case m.StopRequested(within):
                self._stop_requested(within, now)
            case m.RegistrationFailed() if self.draining:
                self._leave_and_exit()
            case m.RegistrationFailed() | m.HeartbeatFailed():
                self._contact_failed(event, now)
            case m.Registered() | m.RegistrationRefused() | m.HeartbeatAnswered():
                self._contact_made(event, now)
            case m.Trained() | m.TrainingFailed():
                self._user_code_ended(event, now)
            case _:
                assert self._work is not None  # noqa: S101 or it would be late
                self._transfer_ended(event, self._work, now)

    # The coordinator

    def _contact_failed(self, event: m.RegistrationFailed | m.HeartbeatFailed, now: float) -> None:
        path = wire.RENDEZ_VOUS if isinstance(event, m.RegistrationFailed) else wire.HEARTBEAT
        delay = ASK_FINISHED if self._finished else self._contact.failed(event.retry_after, now)
        self._contact.plan(now + delay)
        self._facts += [events.ContactLost(event.detail or event.reason), events.Retrying(path, event.reason, delay)]

    def _contact_made(self, event: m.Registered | m.RegistrationRefused | m.HeartbeatAnswered, now: float) -> None:
        self._facts.append(events.ContactMade())
        self._contact.answered(now)
        match event:
            case m.Registered(id):
                self._id, self._finished = id, False
                self._facts.append(events.Registered(id, self._register_reason))
                self._contact.plan(now)
                if self.draining:
                    self._leave_and_exit()
            case m.RegistrationRefused():
                self._facts.append(events.RegistrationRefused())
                self._finish(now)
            case _:
                self._heartbeat_answered(event.answer, now)

    def _heartbeat_answered(self, answer: wire.Heartbeat, now: float) -> None:
        outdated, self._contact.outdated = self._contact.outdated, False
        if answer.state is HeartbeatState.REJECT:
            self._rejected(now)
            return
        self._contact.accepted()
        if outdated and answer.state is not HeartbeatState.FINISH:
            self._contact.plan(now)
        elif self._work is None:
            self._follow(answer, now)
        elif not self._work.continues(answer):
            self._round_over(self._work, answer, now)

    def _rejected(self, now: float) -> None:
        self._give_up("the coordinator no longer knows this participant", now)
        self._register("rejected", self._contact.register_at(now))
        if self.draining:
            self._exit(Reason.STOPPED)

    def _follow(self, answer: wire.Heartbeat, now: float) -> None:
        """Follow a heartbeat's response while there is no work."""
        selected = answer.state is HeartbeatState.ROUND
        if answer.state is HeartbeatState.FINISH:
            self._finish(now)
        elif self.draining and not (self._legacy and answer.token is None if selected else self._must_stay):
            self._leave_and_exit()
        elif selected:
            self._begin(answer, now)

    def _register(self, why: str, at: float) -> None:
        self._discard()
        self._id, self._register_reason, self._contact.outdated = None, why, False
        self._contact.plan(at)

    def _finish(self, now: float) -> None:
        self._register("start", now + ASK_FINISHED)
        self._finished = True
        if self._policy.exit_after_finish or self.draining:
            self._exit(Reason.FINISHED)

    # The round

    def _begin(self, answer: wire.Heartbeat, now: float) -> None:
        assert answer.round is not None  # noqa: S101 with `round`
        if self._stored is not None and not self._stored.fits(answer.round, answer.run):
            self._discard()
        self._contact.plan(now + self._policy.heartbeat_period)
        self._work = self._new_work(answer.round)
        self._work.begin(answer, self._stored, now)
        self._legacy = self._work.legacy

    def _transfer_ended(self, event: m.TransferEvent, work: Work, now: float) -> None:
        unaccepted = work.accepted_at is None
        then = work.take(event, self._stored, now)
        if self._stored is not None and not self._stored.fits(work.request.round, work.request.run):
            self._discard()
        match then:
            case Step.TRAIN:
                self._discard()
                self._busy = work.request.serial
                self._do(m.Train(work.request))
            case Step.CONFIRM:
                self._contact.plan_now(now)
            case Ended(Outcome.FAILED, reason) if isinstance(event, m.ModelRefused):
                self._user_code_failed(work, reason, now)
            case Ended() as ended:
                self._settled(work, ended, now)
            case None if self.draining and unaccepted and work.accepted_at is not None and self._stored is None:
                self._abandon_and_exit("asked to stop", now)

    def _settled(self, work: Work, ended: Ended, now: float) -> None:
        """End a round for another reason than a heartbeat."""
        if ended.outcome is Outcome.REFUSED:
            self._discard()
        if ended.outcome is Outcome.FAILED:
            self._fail(work, ended.reason, now, again_at=now)
        else:
            self._end(work, ended, now)
            self._continue(now, immediately=ended.outcome in (Outcome.COMPLETED, Outcome.EVALUATED))

    def _user_code_ended(self, event: m.Trained | m.TrainingFailed, now: float) -> None:
        self._busy, self._kill_at = None, math.inf
        work = self._work
        if work is None or work.request.serial != event.request.serial:
            self._do(m.Discard())
        elif isinstance(event, m.Trained):
            self._failures.reset()
            self._stored = work.trained(now)
        else:
            self._user_code_failed(work, event.reason, now)

    def _round_over(self, work: Work, answer: wire.Heartbeat, now: float) -> None:
        if not work.uploading:
            self._end(work, work.verdict(answer), now)
            self._follow(answer, now)
            return
        work.settle(now)
        if answer.state is HeartbeatState.FINISH:
            self._finished = True
            self._contact.end()

    def _end(self, work: Work, ended: Ended, now: float) -> None:
        if work.confirming and work.sent_at is not None:
            self._facts.append(events.PhaseEnded(work.request.round, "confirm", now - work.sent_at))
        if work.accepted_at is not None:
            self._facts.append(events.RoundEnded(work.request.round, ended.outcome, now - work.accepted_at, ended.reason))
        if self._busy == work.request.serial:
            self._kill_at = now + self._policy.cancel_timeout
        if work.lane.under_way or self._busy == work.request.serial:
            self._do(m.Cancel())
        self._work = None

    def _give_up(self, reason: str, now: float) -> None:
        if self._work is not None:
            self._end(self._work, self._work.given_up(reason), now)

    def _forfeit(self, work: Work) -> None:
        if work.legacy and work.request.token and work.sent_at is None:
            self._do(m.Forfeit(work.request))

    def _abandon(self, reason: str, now: float) -> None:
        if (work := self._work) is not None:
            self._give_up(reason, now)
            self._forfeit(work)

    def _abandon_and_exit(self, reason: str, now: float) -> None:
        self._abandon(reason, now)
        self._leave_and_exit()

    def _continue(self, now: float, *, immediately: bool = False) -> None:
        if self._finished:
            self._finish(now)
        elif self.draining and not self._must_stay:
            self._leave_and_exit()
        elif immediately:
            self._contact.plan_now(now)
        else:
            self._contact.outdated = self._contact.under_way

    def _user_code_failed(self, work: Work, reason: str, now: float) -> None:
        again_at = now + self._failures.add()
        if self.draining or self._failures.count >= self._policy.max_failures or not work.legacy:
            self._fail(work, reason, now, again_at)
        else:
            self._end(work, Ended(Outcome.FAILED, reason), now)
            self._work = self._new_work(work.request.round)
            self._work.resume(work, again_at)

    def _fail(self, work: Work, reason: str, now: float, again_at: float) -> None:
        # Code that must stop may raise: that is not a failure.
        self._end(work, Ended(Outcome.ABANDONED if self.draining else Outcome.FAILED, reason), now)
        self._forfeit(work)
        if self.draining:
            self._leave_and_exit()
            return
        self._do(m.Leave(work.request.id, immediately=False, reason=reason))
        self._register("round_failed", again_at)
        if self._failures.count >= self._policy.max_failures:
            self._exit(Reason.FAILED)

    def _leave_and_exit(self) -> None:
        if self._id is not None:
            self._do(m.Leave(self._id, immediately=self._contact.under_way and self._contact.long_polling))
        self._exit(Reason.STOPPED)

    def _exit(self, reason: Reason, *, immediately: bool = False) -> None:
        self.exited = reason
        self._contact.end()
        self._do(m.Exit(reason, immediately))

    def _stop_requested(self, within: float, now: float) -> None:
        if self.draining:
            self._give_up("asked twice to stop", now)
            self._exit(Reason.STOPPED, immediately=True)
            return
        self.draining = True
        if self._id is None and self._contact.under_way:
            self._stop_by = now + LEAVE_TIMEOUT
        elif self._must_stay if self._work is None else self._work.is_awaited:
            self._stop_by = now + within
            self._do(m.Hurry())
        else:
            self._abandon_and_exit("asked to stop", now)

    def _timer_fired(self, now: float) -> None:
        if self._kill_at <= now:
            self._kill_at = math.inf
            self._do(m.Kill())
        if self._stop_by <= now:
            self._abandon_and_exit("the process is stopping, and the drain time-out is over", now)
        elif self._contact.give_up_at <= now:
            self._abandon("the coordinator was unreachable for too long", now)
            self._exit(Reason.GAVE_UP)
        elif (work := self._work) is not None and work.deadline <= now and (ended := work.overdue(now)):
            self._settled(work, ended, now)

    def _start_what_is_due(self, now: float) -> None:
        work = self._work
        if self._contact.start(now):
            self._do(self._contact.command_for(self._id, self._policy.long_poll if work is None else 0.0, now))
        if work is not None and not self._blocked(work) and work.lane.start(now):
            assert work.lane.command is not None  # noqa: S101 it was planned with one
            self._do(work.lane.command)

    def _blocked(self, work: Work) -> bool:
        return self._busy is not None and isinstance(work.lane.command, m.Download)

    @property
    def _must_stay(self) -> bool:
        """Whether a 0.8 coordinator may still be in the round that the stored update was delivered to."""
        return self._legacy and self._stored is not None

    def _new_work(self, round: int) -> Work:
        assert self._id is not None  # noqa: S101 the coordinator just answered it
        return Work(self._policy, self._random, self._serials, self._facts, self._id, round)

    def _discard(self) -> None:
        if self._stored is not None:
            self._stored = None
            self._do(m.Discard())

    def _do(self, command: m.Command) -> None:
        self._commands.append(command)
