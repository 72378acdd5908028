"""Durable files: a file is replaced as a whole or not at all, whenever the process ends."""

import errno
import logging
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from fedround.aggregator.guards import Size
from fedround.aggregator.store import ModelStore
from fedround.common.books import Run
from fedround.common.durable import Directory, locked
from fedround.coordinator import store
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Memory
from fedround.coordinator.seats import Known
from fedround.errors import ConfigurationError, DataDirectoryHeld
from support.disks import MemoryDisk, SmallDisk, crashes, files_of_at_most
from support.updates import npy

SETTING = "AGGREGATOR_DATA_DIR"


def model(round: int) -> list[bytes | memoryview]:
    return [npy(np.full(5, float(round)))]


def memory(round: int) -> Memory:
    past = Past(round - 1, 1.5, 1, 0, samples=3, parameters=5, figures={"loss": 0.5}, weights={"mean": 0.25})
    return Memory(round, (Known(f"id-{round}", "anna", 0, extended=True, counted=round - 1, owed=round),), (past,), 0)


def test_at_whatever_step_the_aggregator_dies_each_listed_model_is_complete() -> None:
    before = MemoryDisk()
    for round in range(3):
        ModelStore(before, keep=2).save(round, model(round))
    for died, after in crashes(before, lambda disk: ModelStore(disk, keep=2).save(3, model(3)), more_than=10):
        back = ModelStore(after, keep=2)
        assert list(back.rounds) in ([[1, 2], [2, 3]] if died else [[2, 3]])
        for round in back.rounds:
            assert bytes(back.read(round)) == model(round)[0]
        assert len(after.files) == 3


def test_at_whatever_step_the_coordinator_dies_its_memory_is_the_old_or_the_new_one() -> None:
    before = MemoryDisk()
    store.save(before, memory(1))
    for died, after in crashes(before, lambda disk: store.save(disk, memory(2)), more_than=5):
        assert store.load(after) in ([memory(1), memory(2)] if died else [memory(2)])


def test_an_empty_directory_has_no_memory_and_no_models(tmp_path: Path) -> None:
    assert store.load(Directory(tmp_path)) == Memory()
    assert ModelStore(Directory(tmp_path)).rounds == []


def test_a_directory_returns_what_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "coordinator", SETTING) as disk, locked(tmp_path / "aggregator", SETTING) as models:
        assert disk is not None
        assert models is not None
        store.save(disk, memory(7))
        ModelStore(models, keep=1).save(4, [b"head", memoryview(b"body" * 1000)])
        ModelStore(models, keep=1).save(5, [b"head", memoryview(b"body" * 1000)], Size(3, 0.5))
        assert store.load(disk) == memory(7)
        again = ModelStore(models)
        assert (again.rounds, again.baselines) == ([5], [Size(3, 0.5)])
        assert bytes(again.read(5)) == b"head" + b"body" * 1000
    written = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*")}
    assert written == dict.fromkeys(["coordinator/rounds.json", "aggregator/models.json", "aggregator/round-000005.npy"], 0o600)


def found(store: ModelStore) -> tuple[list[int], int | None]:
    return list(store.rounds), store.best


def test_the_best_model_of_each_run_is_kept() -> None:
    disk, first, second = MemoryDisk(), Run("1", "first"), Run("2", "second")
    kept = ModelStore(disk, keep=2)
    assert found(kept) == ([], None)
    for round in range(6):
        kept.save(round, model(round), run=first)
        kept.mark_best({0: 0, 1: 1}.get(round, 1))
    assert found(kept) == ([1, 4, 5], 1)
    kept.mark_best(3)  # it is gone
    assert found(kept)[1] == 1
    for round in range(6, 9):
        kept.save(round, model(round), run=second)
        assert found(kept)[1] is None
    kept.mark_best(7)
    kept.save(9, model(9), run=second)
    again = ModelStore(disk, keep=2)
    assert found(again) == ([1, 7, 8, 9], 7)
    again.roll_back(1)
    assert found(again) == ([1], 1)


def test_at_whatever_step_a_rollback_dies_it_is_complete_or_has_not_happened() -> None:
    before = MemoryDisk()
    for round in range(4):
        ModelStore(before).save(round, model(round))
    outcomes = set()
    for died, after in crashes(before, lambda disk: ModelStore(disk).roll_back(1), more_than=5):
        back = ModelStore(after)
        outcomes.add((back.generation, *back.rounds))
        assert len(after.files) == 1 + len(back.rounds)
        for round in back.rounds:
            assert bytes(back.read(round)) == model(round)[0]
        if not died:
            back.save(2, model(7))
            assert (back.rounds, ModelStore(after).generation) == ([0, 1, 2], 1)
    assert outcomes == {(0, 0, 1, 2, 3), (1, 0, 1)}


def test_at_whatever_step_of_the_first_model_the_aggregator_dies_it_starts_again() -> None:
    for _, after in crashes(MemoryDisk(), lambda disk: ModelStore(disk).save(0, model(0)), more_than=5):
        ModelStore(after).save(0, model(0))
        assert ModelStore(after).rounds == [0]


def large(round: int) -> list[bytes | memoryview]:
    """A model that needs more room than the list."""
    return [npy(np.full(1000, float(round)))]


def test_a_full_disk_removes_the_oldest_models_but_never_the_newest_two(caplog: pytest.LogCaptureFixture) -> None:
    disk = SmallDisk(5 * len(large(0)[0]) + 2000)
    for round in range(20):
        ModelStore(disk, keep=10).save(round, large(round))
    kept = ModelStore(disk, keep=10)
    assert kept.rounds[-1] == 19
    assert len(kept.rounds) > 2
    assert "the disk is full: removed the model of round 0 early" in caplog.text
    disk.room = 0
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            kept.save(20, large(20))
    assert kept.rounds == [18, 19]
    assert bytes(ModelStore(disk).read(19)) == large(19)[0]
    disk.room = 10**6
    kept.save(20, large(20))
    assert ModelStore(disk).rounds == [18, 19, 20]


def test_a_disk_without_room_for_the_list_loses_only_the_oldest_models() -> None:
    disk = SmallDisk(10**6)
    kept = ModelStore(disk)
    for round in range(8):
        kept.save(round, large(round), state=large(-round))
    disk.room = disk.used + 10
    kept.save(8, large(8), state=large(-8))
    assert kept.rounds[-1] == 8
    assert len(disk.files) == 1 + 2 * len(kept.rounds)
    assert [bytes(kept.read_state(round) or b"") for round in kept.rounds] == [large(-round)[0] for round in kept.rounds]
    assert kept.rounds == ModelStore(disk).rounds
    assert [bytes(kept.read(round)) for round in kept.rounds] == [large(round)[0] for round in kept.rounds]


def test_a_full_disk_is_an_error_that_keeps_the_existing_models(tmp_path: Path) -> None:
    kept = ModelStore(Directory(tmp_path))
    kept.save(4, model(4))
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        kept.save(5, model(5))
    again = ModelStore(Directory(tmp_path))
    assert again.rounds == [4]
    assert bytes(again.read(4)) == model(4)[0]
    kept.save(5, model(5))
    assert ModelStore(Directory(tmp_path)).rounds == [4, 5]


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "round-000004.npy.part").write_bytes(b"half")
    with locked(tmp_path, SETTING) as directory:
        assert directory is not None
        assert directory.names() == ["lock"]


def test_a_directory_is_created_and_held_by_one_process_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "new" / "data"
    second = threading.Event()

    def wait_for_it() -> None:
        with locked(path, SETTING):
            second.set()

    with locked(path, SETTING):
        with pytest.raises(DataDirectoryHeld, match="held by another process"), locked(path, SETTING, within=0.01):
            pytest.fail("it was given to two")
        assert caplog.messages == [f"waiting: {SETTING}={path} is held by another process"]
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        assert not second.is_set()
    waiting.join(timeout=10)
    assert second.is_set()


def test_files_in_the_data_directory_are_readable_by_their_user_only(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        path = tmp_path / "data"
        with locked(path, SETTING) as disk:
            assert disk is not None
            (path / "rounds.json").write_bytes(b"a former one")
            (path / "rounds.json").chmod(0o644)
            store.save(disk, memory(7))
            disk.write("round-000004.npy", model(4))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
            assert modes == dict.fromkeys(["lock", "rounds.json", "round-000004.npy"], 0o600)
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            Directory(tmp_path, mode=0o666).write("model.npy", [b"of a user"])
            assert stat.S_IMODE((tmp_path / "model.npy").stat().st_mode) == 0o666
    finally:
        os.umask(former)


def test_a_file_system_without_locks_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Act like some network file systems."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigurationError, match=rf"{SETTING}=.* cannot be used: No locks available"), locked(tmp_path, SETTING):
        pytest.fail("it was given")


def test_without_a_data_directory_nothing_is_held() -> None:
    with locked(None, SETTING) as nothing:
        assert nothing is None


@pytest.mark.parametrize(
    ("obstacle", "path", "reason"), [("data", "data", ""), ("data/round-000004.npy.part/x", "data", "Is a directory")]
)
def test_an_unusable_data_directory_is_a_configuration_error(obstacle: str, path: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / obstacle).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / obstacle).touch()
    with pytest.raises(ConfigurationError, match=rf"{SETTING}=.* cannot be used: .*{reason}"), locked(tmp_path / path, SETTING):
        pytest.fail("it was given")
