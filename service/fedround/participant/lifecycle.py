"""The participant's lifecycle: what to do next, given what has happened. A core without I/O; time and randomness are arguments.

    registering -> waiting -> training(round) -> confirming(round) -> waiting ... -> finished | stopped

The rules:

1. One exchange with the coordinator (register, heartbeat) is under way at a time, and one for the round (start_training, download,
   upload). A failed one is made again after a jittered delay, for ever, or until `give_up_after`.
2. `reject`, at any time: register again, at once the first time, then with growing delays. What was trained for the old id is
   thrown away.
3. `round` is an *order*. It is accepted by start_training, or by the token that came with it; refused, it is no more.
4. What was trained is kept until a later round, `reject` or `finish`. An order for the same round sends it again, without training,
   if the global model is still the one it was trained on: asked by ETag; a peer that sends none is believed.
5. An update is settled when its answer says `counted` or `repeated`. One whose answer was lost is sent again; it may have counted,
   which a heartbeat's `counted`, a later round or `finish` settles; `stand_by` may mean either. A peer that says nothing is 0.8: it
   is the same there, but the same `round` right after means "not yet known": it is ordered again only after `confirm_timeout`, and
   at most `MAX_CONFIRMS` times. Every upload may count there, so one that may have arrived waits as long.
6. 409: the round is over. 413, 415, 422: the update is refused. Any other refusal: the token is dead, order again, at most
   `MAX_DEAD_TOKENS` times.
7. Another order, or `stand_by`, while training: the round was given away. While an upload is under way its own answer is waited for
   first, `SETTLE` seconds at most: it may be the very reason why the round went on.
8. The participant's own code failed, or the global model is larger than it takes: leave, and register anew, until that has happened
   `max_failures` times in a row.
9. `finish`: exit, or ask now and then whether training goes on, but never by the old id's heartbeat, which ends a 0.8 coordinator.
10. Asked to stop: finish the round if that takes no longer than was said, else give it up; leave, with an id that is just on its
    way too; exit. Asked twice: exit at once.
11. User code is given one model at a time; the next is not even fetched while it is busy with a round that was given away.
12. An answer for an id or order of before is *late*, and changes nothing. An answer to what was not asked is an illegal move.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from fedround import events, wire
from fedround.errors import IllegalMove
from fedround.participant import moves as m
from fedround.participant.moves import Outcome, Reason, State
from fedround.participant.work import Contact, Kept, Lane, Work
from fedround.wire import HeartbeatState

OVER = 409
"""The status of an answer that says that the round is over."""
REFUSED = (413, 415, 422)
"""Those that say of an upload that such an update is not accepted."""
MAX_CONFIRMS = 3
"""How often an update that a 0.8 platform does not confirm is ordered again."""
MAX_DEAD_TOKENS = 10
"""How often an order whose token is dead is made again: an aggregator that restarts needs some seconds to be told the tokens."""
LEAVE_TIMEOUT = 2.0
"""Seconds that the id to leave with may take to come, and that the coordinator may take to hear of it."""
SETTLE = 5.0
"""Seconds that an upload has left once the heartbeat says that its round is over."""
ASK_FINISHED = 30.0
"""Seconds between two questions whether a finished training goes on."""

_ASKED: dict[type, type] = {
    m.StartTrainingAnswered: m.StartTraining,
    m.Downloaded: m.Download,
    m.ModelRefused: m.Download,
    m.UploadAnswered: m.Upload,
}
_PATHS: dict[type, str] = {m.StartTraining: wire.START_TRAINING, m.Download: wire.UPDATE, m.Upload: wire.UPDATE}


class Lifecycle:
    """See the rules above. It begins with a `TimerFired`. `random` gives numbers from 0 up to 1."""

    def __init__(self, policy: m.Policy, random: Callable[[], float]) -> None:
        self.draining = False
        self.exited: Reason | None = None
        self._policy = policy
        self._random = random
        self._id: str | None = None
        self._finished = False
        self._work: Work | None = None
        self._kept: Kept | None = None
        self._busy: int | None = None
        """The serial of the order that user code works on."""
        self._serial = 0
        self._failures = 0
        self._why = "start"
        self._contact = Contact(policy, random)
        self._stop_by = math.inf
        self._commands: list[m.Command] = []
        self._facts: list[events.Fact] = []
        self._told: events.StateChanged | None = None

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
        return None if self._work is None else self._work.order.round

    def next_deadline(self) -> float:
        """When `TimerFired` is due, if nothing else happens before."""
        due = min(self._stop_by, self._contact.give_up_at, self._contact.due)
        work = self._work
        return due if work is None else min(due, work.deadline, math.inf if self._blocked(work) else work.lane.due)

    def take_facts(self) -> list[events.Fact]:
        """What happened since the last call, in order."""
        facts, self._facts = self._facts, []
        return facts

    def step(self, event: m.Event, now: float) -> tuple[m.Command, ...]:
        """What to do after `event`, at `now` in monotonic seconds. Raises `IllegalMove`, and then nothing has changed."""
        if self.exited or not self._is_current(event):
            return ()
        self._take(event, now)
        self._start_what_is_due(now)
        told = events.StateChanged(self.state, self.round, self.draining)
        if told != self._told:
            self._told = told
            self._facts.append(told)
        commands, self._commands = tuple(self._commands), []
        return commands

    def _is_current(self, event: m.Event) -> bool:
        """False for what comes late."""
        match event:
            case m.TimerFired() | m.StopRequested():
                return True
            case m.Joined() | m.JoinRefused() | m.RegisterFailed():
                legal = self._contact.under_way and self._id is None
            case m.HeartbeatAnswered(id=id) | m.HeartbeatFailed(id=id):
                if id != self._id:
                    return False
                legal = self._contact.under_way
            case m.Trained(order) | m.TrainingFailed(order):
                legal = order.serial == self._busy
            case _:
                if self._work is None or event.order.serial != self._work.order.serial:
                    return False
                lane = self._work.lane
                legal = lane.under_way and isinstance(lane.command, _ASKED.get(type(event), object))
        if not legal:
            raise IllegalMove(self.state, event)
        return True

    def _take(self, event: m.Event, now: float) -> None:
        match event:
            case m.TimerFired():
                self._timer_fired(now)
            case m.StopRequested(within):
                self._stop_requested(within, now)
            case m.RegisterFailed() if self.draining:
                self._leave_and_exit()
            case m.RegisterFailed():
                self._contact_failed(wire.RENDEZ_VOUS, event, now)
            case m.HeartbeatFailed():
                self._contact_failed(wire.HEARTBEAT, event, now)
            case m.Joined() | m.JoinRefused() | m.HeartbeatAnswered():
                self._contact_made(event, now)
            case m.Trained() | m.TrainingFailed():
                self._user_code_ended(event, now)
            case _:
                assert self._work is not None  # noqa: S101 or it would be late
                self._transfer_ended(event, self._work, now)

    # The coordinator

    def _contact_failed(self, path: str, event: m.RegisterFailed | m.HeartbeatFailed, now: float) -> None:
        delay = ASK_FINISHED if self._finished else self._contact.failed(event.retry_after, now)
        self._contact.plan(now + delay)
        self._facts += [events.ContactLost(event.detail or event.reason), events.Retrying(path, event.reason, delay)]

    def _contact_made(self, event: m.Joined | m.JoinRefused | m.HeartbeatAnswered, now: float) -> None:
        self._facts.append(events.ContactMade())
        self._contact.answered(now)
        match event:
            case m.Joined(id):
                self._id, self._finished = id, False
                self._facts.append(events.Registered(id, self._why))
                self._contact.plan(now)
                if self.draining:
                    self._leave_and_exit()
            case m.JoinRefused():
                self._facts.append(events.RegistrationRefused())
                self._finish(now)
            case _:
                self._heard(event.answer, now)

    def _heard(self, answer: wire.Heartbeat, now: float) -> None:
        outdated, self._contact.outdated = self._contact.outdated, False
        if answer.state is HeartbeatState.REJECT:
            self._rejected(now)
            return
        self._contact.welcome()
        if outdated and answer.state is not HeartbeatState.FINISH:
            self._contact.plan(now)
        elif self._work is None:
            self._follow(answer, now)
        elif not self._work.goes_on(answer):
            self._round_over(self._work, answer, now)

    def _rejected(self, now: float) -> None:
        self._give_up("the coordinator does not know this participant any more", now)
        self._register("rejected", self._contact.rejoin(now))
        if self.draining:
            self._exit(Reason.STOPPED)

    def _follow(self, answer: wire.Heartbeat, now: float) -> None:
        """Do what the coordinator says to somebody who works on nothing."""
        if answer.state is HeartbeatState.FINISH:
            self._finish(now)
        elif self.draining:
            self._leave_and_exit()
        elif answer.state is HeartbeatState.ROUND:
            self._begin(answer, now)

    def _register(self, why: str, at: float) -> None:
        self._throw_away()
        self._id, self._why, self._contact.outdated = None, why, False
        self._contact.plan(at)

    def _finish(self, now: float) -> None:
        self._register("start", now + ASK_FINISHED)
        self._finished = True
        if self._policy.exit_after_finish or self.draining:
            self._exit(Reason.FINISHED)

    # The round

    def _begin(self, answer: wire.Heartbeat, now: float) -> None:
        assert self._id is not None  # noqa: S101 it was just answered
        assert answer.round is not None  # noqa: S101 with `round`
        if self._kept is not None and self._kept.round != answer.round:
            self._throw_away()
        self._contact.plan(now + self._policy.heartbeat_period)
        self._work = work = Work(self._new_order(self._id, answer.round), Lane(self._policy, self._random))
        if answer.url is not None and answer.token is not None:
            self._accept(work, answer.url, answer.token, answer, now)
        else:
            work.lane.plan(now, m.StartTraining(work.order))

    def _accept(self, work: Work, url: str, token: str, said: wire.Heartbeat | wire.StartTraining, now: float) -> None:
        work.order = replace(work.order, url=url, token=token)
        if work.accepted_at is None:
            work.accepted_at = now
            repeated = self._kept is not None
            self._facts.append(events.OrderAccepted(work.order.round, repeated, said.traceparent, said.tracelink))
        etag = None if self._kept is None else self._kept.etag
        fits = self._kept is not None and etag is None
        work.lane.plan(now, m.Upload(work.order) if fits else m.Download(work.order, etag))

    def _transfer_ended(self, event: m.TransferEvent, work: Work, now: float) -> None:
        transfer = work.lane.end()
        match event:
            case m.StartTrainingAnswered(_, wire.StartTraining(url=str(url), token=str(token)) as said):
                self._accept(work, url, token, said, now)
            case m.StartTrainingAnswered():
                self._give_up_and_rest("start_training was refused", now)
            case m.Downloaded(_, etag, modified):
                self._downloaded(work, etag, modified, now)
            case m.ModelRefused(_, reason):
                self._failures += 1
                self._fail(work, reason, now)
            case m.UploadAnswered(_, None):
                self._sent(work, now)
            case m.UploadAnswered():
                self._end(Outcome.COMPLETED, "", now)
                self._rest(now, at_once=True)
            case m.TransferFailed(_, reason, retry_after):
                self._retry(work, transfer, reason, retry_after, now)
            # A 0.8 coordinator answers 404 while its aggregator is away: no verdict.
            case m.TransferRefused() if isinstance(transfer, m.StartTraining):
                self._retry(work, transfer, "refused", None, now)
            case _:
                self._refused(work, transfer, event.status, f"{event.status} {event.detail}".strip(), now)

    def _downloaded(self, work: Work, etag: str | None, modified: bool, now: float) -> None:
        work.etag = etag
        if self._kept is not None and (not modified or etag in (None, self._kept.etag)):
            work.lane.plan(now, m.Upload(work.order))
            return
        self._throw_away()
        self._busy, work.sent_at = work.order.serial, None
        self._do(m.Train(work.order))

    def _user_code_ended(self, event: m.Trained | m.TrainingFailed, now: float) -> None:
        self._busy = None
        work = self._work
        if work is None or work.order.serial != event.order.serial:
            self._do(m.ThrowAway())
        elif isinstance(event, m.Trained):
            self._failures = 0
            self._kept = Kept(work.order.round, work.etag)
            work.lane.plan(now, m.Upload(work.order))
        else:
            self._failures += 1
            self._fail(work, event.reason, now)

    def _sent(self, work: Work, now: float) -> None:
        """A peer that says nothing may have the update."""
        work.may_have_arrived(now)
        if work.over:
            self._give_up_and_rest("the round was over before the platform said that it had the update", now)
            return
        work.deadline = now + self._policy.confirm_timeout
        self._contact.anew(now)

    def _retry(self, work: Work, transfer: m.Transfer | None, reason: str, retry_after: float | None, now: float) -> None:
        lost = isinstance(transfer, m.Upload) and retry_after is None
        if lost and work.etag is None:
            self._sent(work, now)
            return
        if lost:
            work.may_have_arrived(now)
        if work.over:
            self._give_up_and_rest("the round was over before the update was sent", now)
        else:
            delay = work.lane.delay(retry_after)
            work.lane.plan(now + delay, transfer)
            self._facts.append(events.Retrying(_PATHS[type(transfer)], reason, delay))

    def _refused(self, work: Work, transfer: m.Transfer | None, status: int, reason: str, now: float) -> None:
        if status in REFUSED and isinstance(transfer, m.Upload):
            self._throw_away()
            self._end(Outcome.REFUSED, reason, now)
            self._rest(now)
        elif status == OVER:  # it was never counted: that would be `repeated`
            self._end(Outcome.ABANDONED, reason, now)
            self._rest(now)
        elif work.over:
            self._give_up_and_rest(reason, now)
        elif work.dead_tokens < MAX_DEAD_TOKENS:
            work.dead_tokens += 1
            self._order_again(work, now + work.lane.delay())
        else:
            self._fail(work, reason, now)

    def _order_again(self, work: Work, at: float) -> None:
        work.deadline = math.inf
        work.order = self._new_order(work.order.id, work.order.round)
        work.lane.plan(at, m.StartTraining(work.order))

    def _round_over(self, work: Work, answer: wire.Heartbeat, now: float) -> None:
        if not work.uploading:
            self._end(work.verdict(answer), f"the coordinator says {answer.state}", now)
            self._follow(answer, now)
            return
        if not work.over:
            work.over, work.deadline = True, now + SETTLE
        if answer.state is HeartbeatState.FINISH:
            self._finished = True
            self._contact.end()

    # Ends

    def _end(self, outcome: Outcome, reason: str, now: float) -> None:
        work = self._work
        assert work is not None  # noqa: S101 who calls has one
        if work.confirming and work.sent_at is not None:
            self._facts.append(events.PhaseEnded(work.order.round, "confirm", now - work.sent_at))
        if work.accepted_at is not None:
            self._facts.append(events.RoundEnded(work.order.round, outcome, now - work.accepted_at, reason))
        if work.lane.under_way or self._busy == work.order.serial:
            self._do(m.Cancel())
        self._work = None

    def _give_up(self, reason: str, now: float) -> None:
        if self._work is not None:
            self._end(Outcome.ABANDONED if self._work.sent_at is None else Outcome.UNCONFIRMED, reason, now)

    def _give_up_and_rest(self, reason: str, now: float) -> None:
        self._give_up(reason, now)
        self._rest(now)

    def _rest(self, now: float, *, at_once: bool = False) -> None:
        """After a round that ended otherwise than by a heartbeat."""
        if self._finished:
            self._finish(now)
        elif self.draining:
            self._leave_and_exit()
        elif at_once:
            self._contact.anew(now)
        else:
            self._contact.outdated = self._contact.under_way

    def _fail(self, work: Work, reason: str, now: float) -> None:
        # Code that is told to come to an end may well raise: that is no failure.
        self._end(Outcome.ABANDONED if self.draining else Outcome.FAILED, reason, now)
        if self.draining:
            self._leave_and_exit()
            return
        self._do(m.Leave(work.order.id, at_once=False))
        self._register("round_failed", now)
        if self._failures >= self._policy.max_failures:
            self._exit(Reason.FAILED)

    def _leave_and_exit(self) -> None:
        if self._id is not None:
            self._do(m.Leave(self._id, at_once=self._contact.under_way and self._contact.held))
        self._exit(Reason.STOPPED)

    def _exit(self, reason: Reason, *, at_once: bool = False) -> None:
        self.exited = reason
        self._contact.end()
        self._do(m.Exit(reason, at_once))

    def _stop_requested(self, within: float, now: float) -> None:
        if self.draining:
            self._give_up("asked twice to stop", now)
            self._exit(Reason.STOPPED, at_once=True)
            return
        self.draining = True
        if self._id is None and self._contact.under_way:
            self._stop_by = now + LEAVE_TIMEOUT
        elif self._work is None or self._work.accepted_at is None:
            self._give_up("asked to stop", now)
            self._leave_and_exit()
        else:
            self._stop_by = now + within
            self._do(m.Hurry())

    def _timer_fired(self, now: float) -> None:
        work = self._work
        if self._stop_by <= now:
            self._give_up("asked to stop, and out of time", now)
            self._leave_and_exit()
        elif self._contact.give_up_at <= now:
            self._give_up("the coordinator was unreachable for too long", now)
            self._exit(Reason.GAVE_UP)
        elif work is not None and work.deadline <= now:
            if work.over:
                self._give_up_and_rest("the round was over before the update was sent", now)
            elif work.confirms < MAX_CONFIRMS:
                work.confirms += 1
                self._order_again(work, now)
            else:
                self._fail(work, "the platform did not confirm the update", now)

    # How it is done

    def _start_what_is_due(self, now: float) -> None:
        work = self._work
        if self._contact.start(now):
            self._do(self._contact.ask(self._id, self._policy.long_poll if work is None else 0.0, now))
        if work is not None and not self._blocked(work) and work.lane.start(now):
            assert work.lane.command is not None  # noqa: S101 it was planned with one
            self._do(work.lane.command)

    def _blocked(self, work: Work) -> bool:
        return self._busy is not None and isinstance(work.lane.command, m.Download)

    def _throw_away(self) -> None:
        if self._kept is not None:
            self._kept = None
            self._do(m.ThrowAway())

    def _do(self, command: m.Command) -> None:
        self._commands.append(command)

    def _new_order(self, id: str, round: int) -> m.Order:
        self._serial += 1
        return m.Order(self._serial, id, round)
