"""Any sequence of events, in any order, and what a participant must never do."""

import math
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from fedround.common import wire
from fedround.common.wire import UpdateOutcome
from fedround.events import RoundEnded, RoundJoined
from fedround.participant import moves as m
from fedround.participant.lifecycle import Lifecycle
from support.lifecycle import FINISH, REJECT, ROUND, STAND_BY, TOKEN, URL

RUNS = [None, *(wire.Run("an id", "default", shard=shard) for shard in (None, (0, 2), (1, 2)))]


ANSWERS = st.one_of(
    st.builds(wire.Heartbeat, st.sampled_from([STAND_BY, FINISH, REJECT])),
    st.builds(
        wire.Heartbeat,
        st.just(ROUND),
        st.integers(0, 2),
        url=st.none() | st.just(URL),
        token=st.sampled_from([TOKEN, "b-token"]),
        run=st.sampled_from(RUNS),
    ),
)


ORDERS = st.sampled_from([wire.StartTraining(None, None), *(wire.StartTraining(URL, TOKEN, run=run) for run in RUNS)])


FAILURES: st.SearchStrategy[Callable[[m.TrainingRequest], m.Event]] = st.sampled_from(
    [
        lambda order: m.TransferFailed(order, "x"),
        lambda order: m.TransferFailed(order, "x", sent=False),
        lambda order: m.TransferRefused(order, 409),
        lambda order: m.TransferRefused(order, 401),
    ]
)


class World:
    """Responds to a lifecycle in any order and any way, also late, and checks that it does nothing forbidden."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        policy = m.Policy(
            exit_after_finish=data.draw(st.booleans()),
            give_up_after=data.draw(st.sampled_from([math.inf, 20.0])),
            cancel_timeout=data.draw(st.sampled_from([math.inf, 5.0])),
        )
        self.core = Lifecycle(policy, lambda: 0.5)
        self.now = 0.0
        self.unanswered: list[m.Command] = []
        self.dead: set[str] = set()
        self.ids = 0
        self.id: str | None = None
        self.user_code: m.TrainingRequest | None = None
        self.model: str | None = None
        self.kept: str | None = None
        self.kept_shard: wire.Shard | None = None
        self.trained: set[int] = set()
        self.delivered: m.TrainingRequest | None = None
        self.begun = self.ended = 0

    def step(self, event: m.Event) -> None:
        for command in self.core.step(event, self.now):
            self.look(command)
            if not isinstance(command, m.Discard | m.Cancel | m.Kill | m.Hurry | m.Exit | m.Leave | m.Forfeit):
                self.unanswered.append(command)
        for fact in self.core.take_facts():
            self.begun += isinstance(fact, RoundJoined)
            self.ended += isinstance(fact, RoundEnded)
        assert self.begun - self.ended in (0, 1)
        assert (self.core.exited is not None) <= (self.begun == self.ended)

    def look(self, command: m.Command) -> None:
        assert self.core.exited is None or isinstance(command, m.Discard | m.Cancel | m.Kill | m.Leave | m.Forfeit | m.Exit)
        match command:
            case m.Heartbeat(id, wait):
                assert id == self.id
                assert id not in self.dead
                assert wait == 0 or self.core.state is m.State.WAITING
            case m.Leave(id):
                self.dead.add(id)
            case m.Train(order):
                assert self.user_code is None, "user code is given one model at a time"
                assert order.serial not in self.trained, "an order is trained once"
                assert self.kept is None, "the next model is trained when the kept update is gone"
                self.trained.add(order.serial)
                self.user_code = order
            case m.Kill():
                assert self.user_code is not None, "the lifecycle kills only code that still runs"
            case m.Download(_, etag):
                assert self.user_code is None
                assert (self.kept is None) == (etag is None)
            case m.Upload(order):
                assert self.kept is not None
                assert self.kept_shard == (order.run.shard if order.run else None), "of the shard that is asked for"
            case m.Forfeit(order):
                assert order.token
                assert order != self.delivered, "an update that may have arrived is not forfeited"
            case m.Discard():
                self.kept = None

    def answer(self, command: m.Command) -> m.Event:
        draw = self.draw
        match command:
            case m.Register():
                if draw(st.integers(0, 9)) == 0:
                    return m.RegistrationRefused() if draw(st.booleans()) else m.RegistrationFailed("unreachable")
                self.ids += 1
                self.id = f"id-{self.ids}"
                return m.Registered(self.id)
            case m.Heartbeat(id):
                if draw(st.integers(0, 5)) == 0:
                    return m.HeartbeatFailed(id, "unreachable")
                answer = draw(ANSWERS)
                if answer.state in (FINISH, REJECT):
                    self.dead.add(id)
                return m.HeartbeatAnswered(id, answer)
            case m.Train(order):
                self.user_code = None
                if draw(st.integers(0, 4)):
                    self.kept, self.kept_shard = self.model, order.run.shard if order.run else None
                    return m.Trained(order)
                return m.TrainingFailed(order, "broken")
            case m.StartTraining(order) | m.Download(order) | m.Upload(order):
                if draw(st.integers(0, 2)) == 0:
                    event = draw(FAILURES)(order)
                    if isinstance(command, m.Upload) and isinstance(event, m.TransferFailed) and event.may_have_arrived:
                        self.delivered = order
                    return event
                if isinstance(command, m.Download) and draw(st.integers(0, 9)) == 0:
                    return m.ModelRefused(order, "too large")
                return self.succeed(command, order)
        raise AssertionError(command)

    def succeed(self, command: m.Command, order: m.TrainingRequest) -> m.Event:
        match command:
            case m.StartTraining():
                return m.StartTrainingAnswered(order, self.draw(ORDERS))
            case m.Download(_, etag):
                now = self.draw(st.sampled_from(["a", "b"]))
                if now != etag:
                    self.model = now
                return m.Downloaded(order, now, now != etag)
        self.delivered = order
        return m.UploadAnswered(order, self.draw(st.sampled_from([None, *UpdateOutcome])))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_sequence_of_events_keeps_the_rules(data: st.DataObject) -> None:
    world = World(data)
    world.step(m.TimerFired())
    for _ in range(data.draw(st.integers(1, 60))):
        choice = data.draw(st.integers(0, 30))
        if choice == 30:
            world.step(m.StopRequested(data.draw(st.sampled_from([0.0, 8.0]))))
        elif choice > 22 or not world.unanswered:
            world.now = max(world.now, min(world.core.next_deadline(), world.now + 1e6))
            world.step(m.TimerFired())
        else:
            world.step(world.answer(world.unanswered.pop(choice % len(world.unanswered))))
