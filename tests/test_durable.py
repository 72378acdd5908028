"""What survives: files are replaced as a whole or not at all, whatever the moment of the end; damage is seen."""

import errno
import logging
import os
import stat
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedround.aggregator.guards import Size
from fedround.aggregator.store import ModelStore
from fedround.common import durable
from fedround.common.books import Run
from fedround.common.durable import Directory, locked
from fedround.coordinator import store
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Memory
from fedround.coordinator.seats import Known
from fedround.errors import ConfigurationError, DataDamaged, DataDirectoryHeld
from support.disks import Died, MemoryDisk, SmallDisk, files_of_at_most
from support.updates import npy

SETTING = "AGGREGATOR_DATA_DIR"


def model(round: int) -> list[bytes | memoryview]:
    return [npy(np.full(5, float(round)))]


def memory(round: int) -> Memory:
    past = Past(round - 1, 1.5, 1, 0, samples=3, parameters=5, figures={"loss": 0.5}, weights={"mean": 0.25})
    return Memory(round, (Known(f"id-{round}", "anna", 0, extended=True, counted=round - 1, owed=round),), (past,), 0)


def document(data: object) -> bytes:
    """A file as it should be, whatever is in it."""
    disk = MemoryDisk()
    durable.save(disk, "name", data)
    return disk.files["name"]


def test_at_whatever_step_the_aggregator_dies_each_model_of_its_list_is_whole() -> None:
    before = MemoryDisk()
    for round in range(3):
        ModelStore(before, keep=2).save(round, model(round))
    for steps in range(100):
        disk = MemoryDisk(before.files, steps=steps)
        died = False
        try:
            ModelStore(disk, keep=2).save(3, model(3))
        except Died:
            died = True
        for found in disk.found():
            after = MemoryDisk(found)
            durable.remove_incomplete(after)
            back = ModelStore(after, keep=2)
            assert list(back.rounds) in ([[1, 2], [2, 3]] if died else [[2, 3]])
            for round in back.rounds:
                assert bytes(back.read(round)) == model(round)[0]
            assert len(after.files) == 3
        if not died:
            assert steps > 10
            return
    pytest.fail("it never came to its end")


def test_at_whatever_step_the_coordinator_dies_its_memory_is_the_old_or_the_new_one() -> None:
    before = MemoryDisk()
    store.save(before, memory(1))
    for steps in range(100):
        disk = MemoryDisk(before.files, steps=steps)
        died = False
        try:
            store.save(disk, memory(2))
        except Died:
            died = True
        for found in disk.found():
            assert store.load(MemoryDisk(found)) in ([memory(1), memory(2)] if died else [memory(2)])
        if not died:
            assert steps > 5
            return
    pytest.fail("it never came to its end")


def test_of_an_empty_directory_nothing_is_known(tmp_path: Path) -> None:
    assert store.load(Directory(tmp_path)) == Memory()
    assert ModelStore(Directory(tmp_path)).rounds == []


def test_a_memory_of_before_seats_had_owners_is_read() -> None:
    disk = MemoryDisk()
    known = {"id": "a", "name": "anna", "ordinal": 0, "extended": True, "counted": 3, "owed": None}
    durable.save(disk, store.NAME, {"round": 4, "participants": [known]})
    assert store.load(disk) == Memory(4, (Known("a", "anna", 0, True, 3, None, owner=""),), (), 0)


def test_a_directory_gives_back_what_was_written(tmp_path: Path) -> None:
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


def test_the_best_model_of_each_run_is_kept_however_old_it_is() -> None:
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


def test_at_whatever_step_a_rollback_dies_it_is_done_or_not() -> None:
    before = MemoryDisk()
    for round in range(4):
        ModelStore(before).save(round, model(round))
    outcomes = set()
    for steps in range(100):
        disk = MemoryDisk(before.files, steps=steps)
        died = False
        try:
            ModelStore(disk).roll_back(1)
        except Died:
            died = True
        for found in disk.found():
            after = MemoryDisk(found)
            durable.remove_incomplete(after)
            back = ModelStore(after)
            outcomes.add((back.generation, *back.rounds))
            assert len(after.files) == 1 + len(back.rounds)
            for round in back.rounds:
                assert bytes(back.read(round)) == model(round)[0]
        if not died:
            assert outcomes == {(0, 0, 1, 2, 3), (1, 0, 1)}
            back.save(2, model(7))
            assert (back.rounds, ModelStore(after).generation) == ([0, 1, 2], 1)
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("steps", range(1, 30))
def test_at_whatever_step_of_the_first_model_the_aggregator_dies_it_starts_again(steps: int) -> None:
    disk = MemoryDisk(steps=steps)
    with suppress(Died):
        ModelStore(disk).save(0, model(0))
    for found in disk.found():
        after = MemoryDisk(found)
        durable.remove_incomplete(after)
        ModelStore(after).save(0, model(0))
        assert ModelStore(after).rounds == [0]


def test_models_without_their_list_are_not_touched() -> None:
    disk = MemoryDisk()
    for round in range(10):
        ModelStore(disk).save(round, model(round))
    del disk.files["models.json"]
    before = dict(disk.files)
    for _ in range(2):
        with pytest.raises(DataDamaged, match=r"models.json .*it is missing, but the files that it lists exist"):
            ModelStore(disk)
    assert disk.files == before


def test_a_directory_of_the_other_service_is_not_used() -> None:
    disk = MemoryDisk()
    store.save(disk, memory(1))
    with pytest.raises(DataDamaged, match=r"rounds.json of another service exists"):
        ModelStore(disk)
    disk = MemoryDisk()
    ModelStore(disk).save(0, model(0))
    with pytest.raises(DataDamaged, match=r"models.json of another service exists"):
        store.load(disk)


def large(round: int) -> list[bytes | memoryview]:
    """One that needs more room than the list."""
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


def test_a_disk_without_room_even_for_the_list_loses_the_oldest_models_only() -> None:
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


ENTRY = {"round": 4, "size": 1, "checksum": "x"}
PAST = {"round": 0, "seconds": 1.0, "counted": 1, "dropped": 0, "samples": 1, "parameters": 1, "figures": {}}
KNOWN = {"id": "a", "name": "anna", "ordinal": 0, "extended": True, "counted": 3, "owed": None}


@pytest.mark.parametrize(
    "data",
    [
        None,
        0,
        "",
        {},
        {"generation": -1, "models": []},
        {"generation": 10**400, "models": []},
        [ENTRY | {"round": 10**400}],
        [ENTRY | {"round": "4"}],
        [ENTRY | {"size": -1}],
        [ENTRY | {"checksum": 7}],
        [ENTRY | {"change": float("nan")}],
        [ENTRY | {"state_size": -1}],
        [ENTRY | {"state_size": 4, "state_checksum": 7}],
        [ENTRY, ENTRY],
        [[ENTRY]],
    ],
)
def test_a_list_of_models_with_something_else_in_it_is_damaged_and_nothing_is_removed(data: object) -> None:
    disk = MemoryDisk({"models.json": document(data), "round-000001.npy": b"a model"})
    with pytest.raises(DataDamaged, match=r"models.json"):
        ModelStore(disk)
    assert "round-000001.npy" in disk.files


@pytest.mark.parametrize(
    "data",
    [
        0,
        [],
        {},
        {"round": 10**400, "participants": []},
        {"round": -1, "participants": []},
        {"round": True, "participants": []},
        {"round": 1, "participants": [KNOWN | {"id": 7}]},
        {"round": 1, "participants": [KNOWN | {"counted": "x"}]},
        {"round": 1, "participants": [KNOWN | {"ordinal": 10**400}]},
        {"round": 1, "participants": [KNOWN | {"counted_rounds": None}]},
        {"round": 1, "participants": [KNOWN | {"selected_rounds": -1}]},
        {"round": 1, "participants": "anna"},
        {"round": 1, "participants": [], "history": [PAST | {"samples": 10**400}]},
        {"round": 1, "participants": [], "history": [PAST | {"late": "x"}]},
        {"round": 1, "participants": [], "history": [PAST | {"seconds": "x"}]},
        {"round": 1, "participants": [], "history": [PAST | {"figures": {"loss": "x"}}]},
        {"round": 1, "participants": [], "history": [PAST | {"figures": 7}]},
        {"round": 1, "participants": [], "history": 7},
    ],
)
def test_a_memory_with_something_else_in_it_is_damaged(data: object) -> None:
    with pytest.raises(DataDamaged, match=r"rounds.json"):
        store.load(MemoryDisk({"rounds.json": document(data)}))


def test_a_document_of_endless_depth_is_damaged() -> None:
    body = b"[" * 100_000
    head = f"fedround 1 {zlib.crc32(body):08x}\n".encode()
    for load in (store.load, ModelStore):
        with pytest.raises(DataDamaged, match="not JSON"):
            load(MemoryDisk({"rounds.json": head + body, "models.json": head + body}))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("models.json", lambda data: data[:-1] + b"?", "models.json.*checksum is wrong"),
        ("models.json", lambda data: data.replace(b"fedround 1", b"fedround 2"), "version 2"),
        ("models.json", lambda data: b"[]", "not a file of fedround"),
        ("models.json", lambda data: b"", "not a file of fedround"),
        ("models.json", lambda data: document([{"round": 4}]), "models.json.*it has an invalid entry"),
        ("round-000004.npy", lambda data: data[:-1], "round-000004.npy.*size"),
        ("round-000004.npy", lambda data: data[:-1] + b"?", "checksum"),
        ("round-000004.state.safetensors", lambda data: data[:-1], "round-000004.state.safetensors.*size"),
        ("round-000004.state.safetensors", lambda data: b"?" + data[1:], "checksum"),
    ],
)
def test_damage_is_told_and_nothing_is_thrown_away(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    ModelStore(Directory(tmp_path)).save(4, model(4), state=[b"a ", b"state"])
    file = tmp_path / name
    file.write_bytes(damage(file.read_bytes()))
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataDamaged, match=reason):
        read_both(ModelStore(Directory(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def read_both(kept: ModelStore) -> None:
    kept.read(4)
    kept.read_state(4)


def test_a_model_that_is_gone_is_damage(tmp_path: Path) -> None:
    ModelStore(Directory(tmp_path)).save(4, model(4))
    (tmp_path / "round-000004.npy").unlink()
    with pytest.raises(DataDamaged, match="it cannot be read: No such file"):
        ModelStore(Directory(tmp_path)).read(4)


def test_a_list_or_a_memory_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    for name in ("models.json", "rounds.json"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataDamaged, match=r"models\.json.*it cannot be read: Is a directory"):
        ModelStore(Directory(tmp_path))
    with pytest.raises(DataDamaged, match=r"rounds\.json.*it cannot be read: Is a directory"):
        store.load(Directory(tmp_path))


def test_a_memory_of_before_there_was_a_history_is_read(tmp_path: Path) -> None:
    durable.save(Directory(tmp_path), store.NAME, {"round": 3, "participants": []})
    assert store.load(Directory(tmp_path)) == Memory(3, generation=0)


@pytest.mark.parametrize(
    "document",
    [
        {"round": 3},
        {"round": 3, "participants": [{"id": "x"}]},
        {"round": 3, "participants": [], "history": [{"round": 2}]},
        {"round": 3, "participants": [], "history": 7},
        [1],
    ],
)
def test_a_memory_that_lacks_something_is_damage(tmp_path: Path, document: object) -> None:
    durable.save(Directory(tmp_path), store.NAME, document)
    with pytest.raises(DataDamaged, match="a field is missing, unknown or invalid"):
        store.load(Directory(tmp_path))


def test_a_full_disk_is_an_error_that_leaves_what_there_was(tmp_path: Path) -> None:
    kept = ModelStore(Directory(tmp_path))
    kept.save(4, model(4))
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        kept.save(5, model(5))
    again = ModelStore(Directory(tmp_path))
    assert again.rounds == [4]
    assert bytes(again.read(4)) == model(4)[0]
    kept.save(5, model(5))
    assert ModelStore(Directory(tmp_path)).rounds == [4, 5]


def test_what_was_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "round-000004.npy.part").write_bytes(b"half")
    with locked(tmp_path, SETTING) as directory:
        assert directory is not None
        assert directory.names() == ["lock"]


def test_a_directory_is_made_and_held_by_one_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_what_is_kept_is_for_this_user_alone_whatever_there_was_before(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        path = tmp_path / "data"
        with locked(path, SETTING) as disk:
            assert disk is not None
            (path / "rounds.json").write_bytes(document({"round": 3, "participants": []}))
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


def test_a_place_without_locks_is_a_wrong_setting_and_held_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigurationError, match=rf"{SETTING}=.* cannot be used: No locks available"), locked(tmp_path, SETTING):
        pytest.fail("it was given")


def test_what_was_left_and_cannot_be_removed_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "round-000004.npy.part").mkdir()
    with pytest.raises(ConfigurationError, match=rf"{SETTING}=.* cannot be used: Is a directory"), locked(tmp_path, SETTING):
        pytest.fail("it was given")


def test_without_a_directory_nothing_is_held() -> None:
    with locked(None, SETTING) as nothing:
        assert nothing is None


def test_a_place_where_no_directory_can_be_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"AGGREGATOR_DATA_DIR=.* cannot be used"), locked(tmp_path / "file", SETTING):
        pytest.fail("it was given")
