"""A participant's core. The test plays everything around it."""

from dataclasses import replace

from fedround.common import wire
from fedround.common.wire import HeartbeatState, UpdateOutcome
from fedround.events import Fact, RoundEnded
from fedround.participant import moves as m
from fedround.participant.lifecycle import Lifecycle

STAND_BY, ROUND, FINISH, REJECT = HeartbeatState
ID, TOKEN, URL = "an-id", "a-token", "http://aggregator"
POLICY = m.Policy(heartbeat_period=1.0, long_poll=15.0, exit_after_finish=True)


class Participant:
    """A lifecycle and its clock. Every method returns the commands that follow."""

    def __init__(self, policy: m.Policy = POLICY) -> None:
        self.core = Lifecycle(policy, lambda: 0.0)
        self.now = 1000.0
        self.facts: list[Fact] = []
        self.asked: m.Register | m.Heartbeat | None = None
        self.transfer: m.Transfer | None = None
        self.training: m.TrainingRequest | None = None
        self.tell(m.TimerFired())

    def tell(self, event: m.Event, after: float = 0.0) -> list[m.Command]:
        self.now += after
        if isinstance(event, m.Registered | m.RegistrationRefused | m.RegistrationFailed | m.HeartbeatAnswered | m.HeartbeatFailed):
            self.asked = None
        commands = self.core.step(event, self.now)
        self.facts += self.core.take_facts()
        for command in commands:
            match command:
                case m.Register() | m.Heartbeat():
                    self.asked = command
                case m.StartTraining() | m.Download() | m.Upload():
                    self.transfer = command
                case m.Train(order):
                    self.training = order
        return list(commands)

    def wait(self) -> list[m.Command]:
        """Advance the time until something is due."""
        self.now = max(self.now, self.core.next_deadline())
        return self.tell(m.TimerFired())

    def join(self, id: str = ID) -> list[m.Command]:
        return self.tell(m.Registered(id))

    def hear(self, state: HeartbeatState, number: int | None = None, **more: object) -> list[m.Command]:
        """Return the response to the heartbeat that is sent next."""
        while not isinstance(self.asked, m.Heartbeat):
            self.wait()
        return self.tell(m.HeartbeatAnswered(self.asked.id, wire.Heartbeat(state, number, **more)))  # type: ignore[arg-type] # fields by name

    def order(self, number: int = 0, **more: object) -> list[m.Command]:
        """Return a complete training request."""
        return self.hear(ROUND, number, **{"url": URL, "token": TOKEN, **more})

    def accept(self, token: str = TOKEN, **more: object) -> list[m.Command]:
        """Return the response of start_training to an incomplete request."""
        return self.tell(m.StartTrainingAnswered(self.at_hand, wire.StartTraining(URL, token, **more)))  # type: ignore[arg-type] # fields by name

    def deny(self) -> list[m.Command]:
        """Return the response of start_training to a void request."""
        return self.tell(m.StartTrainingAnswered(self.at_hand, wire.StartTraining(None, None)))

    def download(self, etag: str | None = '"0"', *, modified: bool = True) -> list[m.Command]:
        return self.tell(m.Downloaded(self.at_hand, etag, modified))

    def train(self) -> list[m.Command]:
        assert self.training is not None
        return self.tell(m.Trained(self.training))

    def fail(self, reason: str = "it broke") -> list[m.Command]:
        """Let the training code raise an exception."""
        assert self.training is not None
        return self.tell(m.TrainingFailed(self.training, reason))

    def upload(self, outcome: UpdateOutcome | None = UpdateOutcome.COUNTED) -> list[m.Command]:
        return self.tell(m.UploadAnswered(self.at_hand, outcome))

    def refuse(self, status: int) -> list[m.Command]:
        return self.tell(m.TransferRefused(self.at_hand, status, "so"))

    def lose(self, reason: str = "unreachable", retry_after: float | None = None, *, sent: bool = True) -> list[m.Command]:
        """Let the current transfer fail."""
        return self.tell(m.TransferFailed(self.at_hand, reason, retry_after, sent))

    def stop(self, within: float = 8.0) -> list[m.Command]:
        return self.tell(m.StopRequested(within))

    @property
    def at_hand(self) -> m.TrainingRequest:
        assert self.transfer is not None
        return self.transfer.request

    @property
    def accepted(self) -> m.TrainingRequest:
        """Return the current request, with the response of start_training."""
        return replace(self.at_hand, url=URL, token=TOKEN)

    @property
    def outcomes(self) -> list[str]:
        return [fact.outcome for fact in self.facts if isinstance(fact, RoundEnded)]

    @property
    def state(self) -> str:
        return self.core.state.value


def of(kind: type[m.Command], commands: list[m.Command]) -> list[m.Command]:
    return [command for command in commands if isinstance(command, kind)]


def waiting(policy: m.Policy = POLICY) -> Participant:
    participant = Participant(policy)
    participant.join()
    return participant


def training(number: int = 0, etag: str | None = '"0"', policy: m.Policy = POLICY) -> Participant:
    participant = waiting(policy)
    participant.order(number)
    participant.download(etag)
    return participant


def uploading(number: int = 0, etag: str | None = '"0"', policy: m.Policy = POLICY) -> Participant:
    participant = training(number, etag, policy)
    participant.train()
    return participant


def delivered(number: int = 0, etag: str | None = '"0"') -> Participant:
    participant = uploading(number, etag)
    participant.upload()
    return participant


def confirming(number: int = 0) -> Participant:
    """Return a lifecycle that has uploaded to a 0.8 platform, which confirms nothing."""
    participant = uploading(number, etag=None)
    participant.upload(None)
    return participant


def old_training(number: int = 0, policy: m.Policy = POLICY) -> Participant:
    """Return a lifecycle that trains for a 0.8 platform."""
    participant = waiting(policy)
    participant.hear(ROUND, number)
    participant.accept()
    participant.download(None)
    return participant


def old_waiting(number: int = 0) -> Participant:
    """Return a lifecycle that has uploaded to a 0.8 platform, which then responded `stand_by`."""
    participant = old_training(number)
    participant.train()
    participant.upload(None)
    participant.hear(STAND_BY)
    return participant
