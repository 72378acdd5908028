"""Shards of a split data set: which participant holds and trains each of them."""

import os
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedround import events
from fedround.common.books import Admit, Close, Closed, Open, Outcome, Page, Revoke, Verdict
from fedround.common.wire import Claim
from fedround.coordinator.attempt import State
from fedround.coordinator.plan import Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.shards import Coverage, coverage
from fedround.coordinator.status import status
from support.table import LIFE, Table

COUNT = 3
PLAN = Plan(rounds=0, min_clients=COUNT, heartbeat_timeout=15, round_timeout=60)
ASKS = Claim(COUNT, asks=True)


class Fleet(Table):
    """Participants that share a data set of `COUNT` shards."""

    def __init__(self, plan: Plan = PLAN) -> None:
        super().__init__(plan)
        self.pods = 0

    def ask(self, former: int | None = None, count: int = COUNT) -> str:
        """Add a participant with a new name that asks for a shard."""
        self.pods += 1
        return self.join(f"pod-{self.pods}", extended=True, claim=Claim(count, former, asks=True))

    def fix(self, index: int) -> str:
        """Add a participant with a fixed shard."""
        self.pods += 1
        return self.join(f"pod-{self.pods}", extended=True, claim=Claim(COUNT, index))

    def index(self, id: str) -> int | None:
        seat = self.rounds.present.get(id)
        assert seat is not None
        return seat.index

    @property
    def coverage(self) -> Coverage:
        return coverage(self.rounds.present)

    @property
    def parts(self) -> dict[str, int]:
        """The shards of members that have a part in the attempt, or a counted update."""
        attempt = self.rounds.attempt
        members = attempt.members.values() if attempt else ()
        return {m.id: m.shard[0] for m in members if m.shard is not None and m.state is not State.IGNORED}

    def carry_out(self) -> None:
        """Answer calls until none is due. Before a revocation, the update may already be counted."""
        while (call := self.rounds.pending(self.now)) is not None:
            match call:
                case Open() | Admit():
                    self.rounds.answered(self.now, call, None)
                case Revoke():
                    self.rounds.answered(self.now, call, Verdict.REVOKED)
                case Close():
                    self.rounds.answered(self.now, call, Closed(5))

    def beat(self, seconds: float, *silent: str) -> None:
        """Advance the time. All but these participants send a heartbeat at its end."""
        self.now += seconds
        for seat in [*self.rounds.present]:
            if seat.id not in silent:
                self.rounds.heartbeat(self.now, seat.id, idle=True)
        self.rounds.tick(self.now)

    def round(self) -> dict[str, int]:
        """Let all members upload until the round is over. Return the trained shards by participant."""
        number, parts = self.rounds.round, self.parts
        while self.rounds.round == number:
            self.carry_out()
            if waiting := self.waiting:
                parts = self.parts
                self.enter(*waiting)
        return parts

    @property
    def waiting(self) -> list[str]:
        attempt = self.rounds.attempt
        return [*attempt.by_state[State.SELECTED]] if attempt else []


def test_each_shard_goes_to_one_participant_which_keeps_it() -> None:
    fleet = Fleet()
    a, b, c = fleet.ask(), fleet.ask(), fleet.ask()
    assert fleet.round() == {a: 0, b: 1, c: 2}
    fleet.rounds.leave(fleet.now, a)
    d = fleet.ask()
    assert fleet.round() == {b: 1, c: 2, d: 0}
    assert fleet.coverage == Coverage(COUNT)


def test_a_surplus_participant_waits_until_a_shard_is_free() -> None:
    fleet = Fleet()
    a, b, c, d = fleet.ask(), fleet.ask(), fleet.ask(), fleet.ask()
    assert fleet.round() == {a: 0, b: 1, c: 2}
    assert (fleet.index(d), fleet.coverage.standing_by) == (None, 1)
    fleet.carry_out()
    fleet.enter(b)
    fleet.rounds.leave(fleet.now, b)  # its update counts: nobody may train this shard again
    fleet.carry_out()
    assert d not in fleet.parts
    fleet.enter(a, c)
    fleet.carry_out()
    assert fleet.round() == {a: 0, c: 2, d: 1}


@pytest.mark.parametrize("how", ["leaves", "is refused", "times out"])
def test_a_replacement_trains_the_shard_of_the_replaced_participant(how: str) -> None:
    fleet = Fleet()
    a, b, c, d = fleet.ask(), fleet.ask(), fleet.ask(), fleet.ask()
    fleet.carry_out()
    match how:
        case "leaves":
            fleet.rounds.leave(fleet.now, b)
            assert d not in fleet.parts, "its right is not revoked yet"
        case "is refused":
            fleet.enter(b, outcome=Outcome.REFUSED)
        case _:
            fleet.later(14, a, c, d)
            fleet.later(14, a, c, d)
    fleet.carry_out()
    assert fleet.parts == {a: 0, c: 2, d: 1}
    if how == "is refused":
        assert fleet.index(b) is None


def test_no_shard_is_reserved_for_a_participant_that_cannot_be_selected() -> None:
    fleet = Fleet()
    a, b, c = fleet.ask(), fleet.ask(), fleet.ask()
    fleet.carry_out()
    fleet.enter(a)
    fleet.rounds.leave(fleet.now, a)
    fleet.join("pod-1", extended=True, claim=ASKS)  # may be a again, which was counted
    d = fleet.ask()
    fleet.enter(c, outcome=Outcome.REFUSED)
    fleet.carry_out()
    assert fleet.parts == {a: 0, b: 1, d: 2}


def test_a_paused_participant_gives_its_shard_to_a_waiting_one() -> None:
    fleet = Fleet()
    a, b, c = fleet.ask(), fleet.ask(), fleet.ask()
    for number in range(2):
        fleet.rounds.reliability.failed(fleet.now, fleet.rounds.present.failure_key(b, ("", "")), "pod-2", number, "it failed")
    fleet.rounds.lost(fleet.rounds.attempt.id if fleet.rounds.attempt else "")
    fleet.rounds.recorded(fleet.now, Page("second-life", ()))
    d = fleet.ask()
    fleet.later(2)
    fleet.carry_out()
    assert fleet.parts == {a: 0, c: 2, d: 1}
    assert fleet.index(b) is None


def test_a_fixed_shard_has_priority_from_the_next_attempt() -> None:
    fleet = Fleet()
    a, b, c = fleet.ask(), fleet.ask(), fleet.ask()
    fleet.carry_out()
    own = fleet.fix(1)
    fleet.enter(a, c, outcome=Outcome.REFUSED)
    fleet.carry_out()
    assert fleet.parts == {b: 1}, "b trains it already"
    assert fleet.index(b) is None
    fleet.rounds.leave(fleet.now, a)
    fleet.later(2, b, c, own)
    fleet.enter(b)
    fleet.carry_out()
    fleet.later(2, b, c, own)
    assert fleet.round() == {own: 1, b: 0, c: 2}


def test_two_participants_with_one_fixed_shard_both_train_it_with_a_warning() -> None:
    fleet = Fleet()
    a, b, c = fleet.fix(1), fleet.fix(1), fleet.ask()
    assert fleet.round() == {a: 1, b: 1, c: 0}
    assert fleet.coverage == Coverage(COUNT, missing=(2,), doubled=(1,))
    (fact,) = fleet.facts(events.ShardsChanged)
    assert (fact.shards, fact.missing, fact.doubled) == (COUNT, 1, 1)
    assert "no participant holds shard 2 of 3" in fact.warning
    assert "more than one participant holds shard 1 of 3" in fact.warning
    fleet.round()
    assert not fleet.facts(events.ShardsChanged), "said once"


def test_a_participant_that_registers_again_gets_its_shard_back_if_it_is_free() -> None:
    fleet = Fleet()
    a, b, c = fleet.ask(former=2), fleet.ask(former=2), fleet.ask(former=0)
    assert fleet.round() == {a: 2, b: 1, c: 0}


def test_with_fewer_shards_than_min_clients_no_round_starts_and_the_status_says_why() -> None:
    fleet = Fleet(Plan(rounds=0, min_clients=COUNT + 1))
    for _ in range(COUNT + 1):
        fleet.ask()
    assert fleet.rounds.attempt is None
    assert fleet.rounds.next_deadline() > fleet.now
    state = status(fleet.rounds, fleet.now)["state"]
    assert state == "waiting for participants: 3 of 4; 1 standing by, because there are too few shards"
    fleet.join("silo", extended=True)  # has data of its own
    assert len(fleet.round()) == COUNT


def test_participants_that_disagree_on_the_number_of_shards_are_reported() -> None:
    fleet = Fleet()
    a, b, c, d = fleet.ask(), fleet.ask(), fleet.ask(), fleet.ask(count=2)
    fleet.round()  # began without d
    assert fleet.round() == {a: 0, b: 1, c: 2, d: 0}
    assert fleet.coverage == Coverage(COUNT, other_counts=(2,))
    assert "number of shards (3, 2)" in fleet.coverage.warning


def test_the_status_shows_the_shard_that_is_trained_or_reserved() -> None:
    fleet = Fleet()
    assert status(fleet.rounds, fleet.now)["shards"] is None
    for _ in range(COUNT):
        fleet.ask()
    fleet.carry_out()
    fleet.fix(1)
    fleet.join("silo", extended=True)
    shown = status(fleet.rounds, fleet.now)
    assert [p["shard"] for p in shown["participants"]] == ["0/3", "1/3", "2/3", "1/3", None]
    assert (shown["shards"]["count"], shown["shards"]["doubled"]) == (COUNT, (1,))


def test_a_warning_shortens_a_long_list_of_shards() -> None:
    assert "shards 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 90 more of 100" in Coverage(100, missing=tuple(range(100))).warning


def test_shards_survive_a_restart_of_the_coordinator() -> None:
    fleet = Fleet()
    ids = [fleet.ask(), fleet.ask(), fleet.ask()]
    fleet.rounds.leave(fleet.now, ids.pop(0))
    ids.append(fleet.fix(0))
    held = {id: fleet.index(id) for id in ids}
    fleet.rounds = Rounds(PLAN, fleet.rounds._rng, fleet.now, fleet.rounds.memory)
    assert {id: fleet.index(id) for id in ids} == held
    assert fleet.coverage == Coverage(COUNT)


# Whatever happens

EXAMPLES = 1000 if os.environ.get("CI") else 150
kinds = ["ask", "ask", "fix", "leave", "fail", "silent", "refuse", "deliver", "deliver", "deadline", "round", "lost"]
deeds = st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 5)), max_size=40)


@settings(max_examples=EXAMPLES, deadline=None)
@given(deeds=deeds, fixed=st.booleans(), ratio=st.sampled_from([1.0, 0.5]))
def test_after_any_churn_each_shard_is_assigned_once_and_trained_once_a_round(
    deeds: Sequence[tuple[str, int]], fixed: bool, ratio: float
) -> None:
    fleet = Fleet(Plan(rounds=0, min_clients=COUNT, participants_ratio=ratio, heartbeat_timeout=15, round_timeout=60))
    fixes: list[str] = []
    for deed, n in deeds:
        ids = [p.id for p in fleet.rounds.present]
        one = ids[n % len(ids)] if ids else ""
        waiting = fleet.waiting
        match deed:
            case "ask":
                fleet.ask()
            case "fix" if fixed:
                fixes.append(fleet.fix(n % COUNT))
            case "leave" | "fail":
                fleet.rounds.leave(fleet.now, one, "it failed" if deed == "fail" else "")
            case "silent":
                fleet.beat(8, one)
                fleet.beat(8, one)
            case "deadline":
                for _ in range(6):
                    fleet.beat(10)
            case "refuse" | "deliver" if waiting:
                fleet.enter(waiting[n % len(waiting)], outcome=Outcome.REFUSED if deed == "refuse" else Outcome.COUNTED)
            case "round" if waiting:
                fleet.enter(*waiting)
            case "lost" if fleet.rounds.attempt is not None and fleet.rounds.attempt.opened:
                fleet.rounds.lost(fleet.rounds.attempt.id)
                fleet.rounds.recorded(fleet.now, Page(LIFE, ()))
        check(fleet, fixes)
        fleet.beat(1)
        fleet.carry_out()
        check(fleet, fixes)
    for id in fixes:
        fleet.rounds.leave(fleet.now, id)
    for _ in range(COUNT):
        fleet.ask()
    fleet.beat(61)  # the longest pause before another attempt
    fleet.round()
    held = {p.id: p.index for p in fleet.rounds.present if p.index is not None}
    assert sorted(held.values()) == [*range(COUNT)]
    trained = fleet.round()
    assert trained.items() <= held.items()
    assert len(trained) == (COUNT if ratio == 1 else len(trained))
    assert {p.id: p.index for p in fleet.rounds.present if p.index is not None} == held, "they keep what they hold"


def check(fleet: Fleet, fixes: Sequence[str]) -> None:
    """Check that no shard is trained twice, except by participants with the same fixed shard."""
    parts = fleet.parts
    trained = Counter(parts.values())
    for id, index in parts.items():
        assert 0 <= index < COUNT
        if id not in fixes:
            assert trained[index] == 1
    asked = Counter(p.index for p in fleet.rounds.present if p.asks and p.index is not None)
    assert all(number == 1 for number in asked.values())
