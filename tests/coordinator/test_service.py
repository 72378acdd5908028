"""The coordinator's service: long polls, rounds, outages of the aggregator, and what is persisted."""

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest

from fedround import events
from fedround.common.books import Admission, Measured, Open
from fedround.common.durable import Directory
from fedround.common.wire import Heartbeat, HeartbeatState
from fedround.coordinator import store
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.service import CoordinatorService, never
from support.coordinating import AGGREGATOR_URL, Coordinating, MemoryBooks, coordinating
from support.disks import files_of_at_most

UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def join(service: CoordinatorService, name: str = "p") -> str:
    """Join, and send a heartbeat."""
    id = service.join(name).id
    assert id is not None
    await service.heartbeat(id)
    return id


async def held(service: CoordinatorService, id: str, hung_up: Awaitable[object] | None = None) -> asyncio.Task[Heartbeat]:
    """Return a heartbeat that the service holds."""
    task = asyncio.create_task(service.heartbeat(id, wait=25, hung_up=never if hung_up is None else lambda: hung_up))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def ordered(c: Coordinating, id: str) -> Heartbeat:
    answer = await c.service.heartbeat(id, wait=25)
    assert answer.state is HeartbeatState.ROUND
    return answer


async def test_a_held_heartbeat_is_answered_when_its_participant_is_selected() -> None:
    async with coordinating(Plan(min_clients=2), MemoryBooks()) as c:
        first = await join(c.service)
        hold = await held(c.service, first)
        await join(c.service)
        answer = await hold
        assert (answer.state, answer.round, answer.url) == (HeartbeatState.ROUND, 0, AGGREGATOR_URL)
        assert answer.token == c.service.start_training(first).token is not None


async def test_a_newer_heartbeat_ends_an_older_long_poll() -> None:
    async with coordinating(Plan(min_clients=2), MemoryBooks()) as c:
        id = await join(c.service)
        older = await held(c.service, id)
        newer = await held(c.service, id)
        assert (await older).state is HeartbeatState.STAND_BY
        assert not newer.done()
        assert (await c.service.heartbeat(id)).state is HeartbeatState.STAND_BY
        await newer


async def test_a_participant_that_hangs_up_ends_its_long_poll() -> None:
    async with coordinating(Plan(min_clients=2), MemoryBooks()) as c:
        hung_up = asyncio.Event()
        hold = await held(c.service, await join(c.service), hung_up.wait())
        hung_up.set()
        await hold


async def test_a_long_poll_ends_after_the_requested_seconds() -> None:
    async with coordinating(Plan(min_clients=2), MemoryBooks()) as c:
        answer = await c.service.heartbeat(await join(c.service), wait=0.01)
        assert answer.state is HeartbeatState.STAND_BY


async def test_a_stopping_service_answers_all_long_polls_and_starts_none() -> None:
    async with coordinating(Plan(min_clients=3), MemoryBooks()) as c:
        ids = [await join(c.service), await join(c.service)]
        holds = [await held(c.service, id) for id in ids]
        c.work.cancel()
        assert {(await hold).state for hold in holds} == {HeartbeatState.STAND_BY}
        assert (await c.service.heartbeat(ids[0], wait=25)).state is HeartbeatState.STAND_BY


async def test_a_participant_with_a_held_heartbeat_does_not_time_out() -> None:
    async with coordinating(Plan(min_clients=2, heartbeat_timeout=0.2), MemoryBooks()) as c:
        id = await join(c.service)
        for _ in range(4):
            assert (await c.service.heartbeat(id, wait=25)).state is HeartbeatState.STAND_BY
        assert c.recorder.all(events.ParticipantGone) == []


async def test_a_participant_that_times_out_is_rejected() -> None:
    async with coordinating(Plan(min_clients=2, heartbeat_timeout=0.05), MemoryBooks()) as c:
        id = await join(c.service, "quiet")
        assert await c.recorder.until(events.ParticipantGone) == events.ParticipantGone(id, "quiet", "silent")
        assert (await c.service.heartbeat(id, wait=25)).state is HeartbeatState.REJECT


async def test_the_held_heartbeat_of_a_participant_that_leaves_is_rejected() -> None:
    async with coordinating(Plan(min_clients=2), MemoryBooks()) as c:
        id = await join(c.service)
        hold = await held(c.service, id)
        c.service.leave(id)
        assert (await hold).state is HeartbeatState.REJECT
        c.service.leave(id)


async def test_a_thousand_long_polls_need_no_further_tasks() -> None:
    async with coordinating(Plan(min_clients=1001, shared_seats=1001), MemoryBooks()) as c:
        await c.recorder.until(events.AggregatorReached)
        before = len(asyncio.all_tasks())
        holds = [await held(c.service, await join(c.service)) for _ in range(1000)]
        assert len(asyncio.all_tasks()) - before == len(holds)
        await join(c.service)
        assert {(await hold).state for hold in holds} == {HeartbeatState.ROUND}


async def test_after_the_last_round_is_saved_held_and_unknown_ids_get_finish() -> None:
    """A coordinator that is killed before that needs its participants for the final evaluation."""
    books, disk = MemoryBooks(), threading.Event()

    def keep(memory: Memory) -> None:
        assert memory.round == 0 or disk.wait(20)

    async with coordinating(Plan(rounds=1, participants_ratio=0.5, min_clients=2), books, keep) as c:
        ids = [await join(c.service), await join(c.service)]
        selected = (await c.recorder.until(events.Selected)).ids[0]
        waiting = await held(c.service, next(id for id in ids if id != selected))
        books.deliver(selected, c.service.start_training(selected).token)
        await c.recorder.until(events.TrainingCompleted)
        assert await c.service.heartbeat(selected) == Heartbeat(HeartbeatState.STAND_BY, counted=0)
        assert (await c.service.heartbeat(UNKNOWN)).state is HeartbeatState.STAND_BY
        disk.set()
        assert (await waiting).state is HeartbeatState.FINISH
        assert (await c.service.heartbeat(UNKNOWN)).state is HeartbeatState.FINISH
        assert c.service.join("late").id is None
        assert c.service.start_training(selected).token is None
        assert c.service.status()["state"] == "complete"


async def test_rounds_follow_one_another_and_heartbeats_confirm_the_last_one() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(rounds=3, min_clients=2), books) as c:
        ids = [await join(c.service), await join(c.service)]
        for number in range(3):
            for samples, id in enumerate(ids, start=1):
                answer = await ordered(c, id)
                assert (answer.round, answer.counted) == (number, number - 1 if number else None)
                books.deliver(id, answer.token, samples, loss=float(samples))
            completed = await c.recorder.until(events.RoundCompleted, number + 1)
            assert (completed.samples, completed.metrics) == (3, (("loss", 5 / 3),))


async def test_the_status_shows_statistics_of_models_and_faults_of_the_aggregator() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(), books) as c:
        id = await join(c.service)
        for number in range(3):
            answer = await ordered(c, id)
            books.told["measured"] = (Measured(number - 1, {"mean": float(number)}),) if number else ()
            books.deliver(id, answer.token)
            await c.recorder.until(events.RoundCompleted, number + 1)
        books.told["faults"] = ("the disk hangs",)
        answer = await ordered(c, id)
        books.deliver(id, answer.token)
        await c.recorder.until(events.RoundCompleted, 4)
        status = c.service.status()
        assert [round["weights"] for round in status["last_rounds"]] == [{"mean": 1.0}, {"mean": 2.0}, {}, {}]
        assert status["aggregator_faults"] == ["the disk hangs"]


async def test_an_outage_of_the_aggregator_is_reported_once_and_survived() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(rounds=1), books) as c:
        await c.recorder.until(events.AggregatorReached)
        books.fail(times=4)
        await c.recorder.until(events.AggregatorUnreachable)
        hold = await held(c.service, await join(c.service))
        assert (await hold).state is HeartbeatState.ROUND
        assert len(c.recorder.all(events.AggregatorUnreachable)) == 1
        assert len(c.recorder.all(events.AggregatorReached)) == 2


async def test_an_aggregator_that_lost_its_sum_gets_the_same_round_again() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(rounds=1, min_clients=2), books) as c:
        ids = [await join(c.service), await join(c.service)]
        first = await ordered(c, ids[0])
        books.deliver(ids[0], first.token)
        await c.recorder.until(events.UpdateCounted)
        books.restart()
        await c.recorder.until(events.Selected, 2)
        again = await ordered(c, ids[0])
        assert again.round == 0
        assert again.token != first.token
        for id in ids:
            books.deliver(id, (await ordered(c, id)).token)
        assert (await c.recorder.until(events.RoundCompleted)).samples == 2
        assert len(c.recorder.all(events.AttemptDropped)) == 1


async def test_an_attempt_that_the_aggregator_does_not_know_is_dropped() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(rounds=1, min_clients=1), books) as c:
        id = await join(c.service)
        await ordered(c, id)
        books.core.open("another coordinator's", 0, ())
        c.service.leave(id)
        dropped = await c.recorder.until(events.AttemptDropped)
        assert dropped.reason == "the aggregator lost the updates of this round"


async def test_at_the_deadline_the_round_is_reassigned() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(rounds=1, participants_ratio=0.5, min_clients=2, round_timeout=0.05), books) as c:
        ids = [await join(c.service), await join(c.service)]
        slow = (await c.recorder.until(events.Selected)).ids[0]
        other = next(id for id in ids if id != slow)
        answer = await ordered(c, other)
        revoked = await c.recorder.until(events.Revoked)
        assert (revoked.id, revoked.reason, revoked.phase) == (slow, "deadline", "selected")
        assert revoked.seconds >= 0.05
        books.deliver(other, answer.token)
        assert (await c.recorder.until(events.RoundCompleted)).ids == (other,)


async def test_a_lost_sum_costs_one_attempt_even_if_a_call_finds_it_before_the_ledger() -> None:
    books = MemoryBooks()
    async with coordinating(Plan(rounds=1), books) as c:
        await ordered(c, id := await join(c.service))
        books.core.lose("second life")
        c.service.leave(id)
        await c.recorder.until(events.AttemptDropped)
        books.ring()
        other = await join(c.service)
        books.deliver(other, (await ordered(c, other)).token)
        await c.recorder.until(events.TrainingCompleted)
        assert len(c.recorder.all(events.AttemptDropped)) == 1


async def test_participants_are_persisted_and_a_failed_write_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.coordinator.service.RETRY_MOST", 0.0)
    kept: asyncio.Queue[Memory] = asyncio.Queue()
    loop, disk = asyncio.get_running_loop(), Directory(tmp_path)

    def keep(memory: Memory) -> None:
        store.save(disk, memory)
        loop.call_soon_threadsafe(kept.put_nowait, store.load(disk))

    async with coordinating(Plan(min_clients=2), MemoryBooks(), keep) as c:
        with files_of_at_most(10):
            anna = await join(c.service, "anna")
            told = await c.recorder.until(events.SaveFailed)
            assert (told.what, "File too large" in told.reason) == ("the state of the run", True)
        memory = await kept.get()
        assert [(known.id, known.name) for known in memory.participants] == [(anna, "anna")]
        c.service.leave(anna)
        while (await kept.get()).participants:
            pass


class CheckingBooks(MemoryBooks):
    """Books that admit a participant only if the disk has it as a member of the round."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Memory()

    def keep(self, memory: Memory) -> None:
        self.disk = memory

    async def open(self, call: Open) -> None:
        self._check(call.round, call.admissions)
        await super().open(call)

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        assert self.core.attempt is not None
        self._check(self.core.attempt.round, admissions)
        await super().admit(attempt, admissions)

    def _check(self, round: int, admissions: Sequence[Admission]) -> None:
        assert {admission.id for admission in admissions} <= {known.id for known in self.disk.participants if known.owed == round}


async def test_a_participant_is_admitted_only_after_its_membership_is_persisted() -> None:
    books = CheckingBooks()
    async with coordinating(Plan(rounds=0, participants_ratio=0.5, min_clients=2), books, books.keep) as c:
        ids = {await join(c.service), await join(c.service)}
        for number in range(20):
            (first,) = (await c.recorder.until(events.Selected, 2 * number + 1)).ids
            books.core.refuse(books.core.begin(first, c.service.start_training(first).token or ""))
            books.ring()
            (second,) = (await c.recorder.until(events.Selected, 2 * number + 2)).ids
            assert {first, second} == ids
            books.deliver(second, c.service.start_training(second).token)


async def test_a_failed_write_delays_only_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.coordinator.service.RETRY_MOST", 0.01)
    books, full = MemoryBooks(), True

    def keep(memory: Memory) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    async with coordinating(Plan(heartbeat_timeout=0.1), books, keep) as c:
        await join(c.service, "quiet")
        await c.recorder.until(events.SaveFailed, 2)
        await c.recorder.until(events.ParticipantGone)
        assert books.core.attempt is None
        hold = await held(c.service, await join(c.service))
        full = False
        assert (await hold).state is HeartbeatState.ROUND


async def test_no_participant_times_out_while_the_coordinator_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.coordinator.service.MAX_SLEEP", 0.01)
    paused = 0.0
    async with coordinating(Plan(min_clients=2), MemoryBooks(), clock=lambda: time.monotonic() + paused) as c:
        await c.recorder.until(events.AggregatorReached)
        anna = await join(c.service)
        paused = 100.0
        assert (await c.recorder.until(events.Suspended)).seconds == pytest.approx(100, abs=5)
        assert (await c.service.heartbeat(anna)).state is HeartbeatState.STAND_BY
        assert c.recorder.all(events.ParticipantGone) == []


async def test_pending_changes_are_persisted_at_the_end() -> None:
    asked, let, disk = threading.Event(), threading.Event(), [Memory()]

    def keep(memory: Memory) -> None:
        asked.set()
        assert let.wait(10)
        disk[0] = memory

    async with coordinating(Plan(min_clients=3), MemoryBooks(), keep) as c:
        await join(c.service, "anna")
        assert await asyncio.to_thread(asked.wait, 10)
        await join(c.service, "bert")
        c.work.cancel()
        let.set()
        await asyncio.wait([c.work])
        assert [known.name for known in disk[0].participants] == ["anna", "bert"]
