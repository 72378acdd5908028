"""One attempt of a round: who takes part, and how far each has come. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass, field
from enum import Enum

from fedround.books import Admission, Entry


class State(Enum):
    """A participant's part in the open attempt. Who has none is Waiting."""

    CHOSEN = "chosen"
    SELECTED = "selected"
    REVOKING = "revoking"
    DONE = "done"
    IGNORED = "ignored"


OUTSTANDING = (State.CHOSEN, State.SELECTED, State.REVOKING)


@dataclass(slots=True)
class Member:
    id: str
    name: str
    token: str
    owner: str
    state: State
    deadline: float = math.inf
    ask_at: float = 0.0
    reason: str = ""
    entry: Entry | None = None


@dataclass(slots=True)
class Attempt:
    id: str
    round: int
    begun: float
    opened: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    by_state: dict[State, dict[str, Member]] = field(default_factory=lambda: {state: {} for state in State})
    deadlines: list[tuple[float, str]] = field(default_factory=list)

    def move(self, member: Member, state: State) -> None:
        self.by_state[member.state].pop(member.id, None)
        member.state = state
        self.by_state[state][member.id] = member
        self.members[member.id] = member

    @property
    def outstanding(self) -> int:
        return sum(len(self.by_state[state]) for state in OUTSTANDING)

    @property
    def counted(self) -> dict[str, Member]:
        return self.by_state[State.DONE]

    def admissions(self) -> tuple[Admission, ...]:
        return tuple(Admission(m.id, m.token, m.owner) for m in self.by_state[State.CHOSEN].values())
