"""What survives: files are replaced as a whole or not at all, whatever the moment of the end; damage is seen."""

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedround import durable
from fedround.aggregator.store import ModelStore
from fedround.coordinator import store
from fedround.coordinator.history import Past
from fedround.coordinator.plan import Memory
from fedround.coordinator.seats import Known
from fedround.durable import Directory, held
from fedround.errors import ConfigurationError, DataDamaged, DataDirectoryHeld
from support.disks import Died, MemoryDisk, files_of_at_most
from support.updates import npy

SETTING = "AGGREGATOR_DATA_DIR"


def model(round: int) -> list[bytes | memoryview]:
    return [npy(np.full(5, float(round)))]


def memory(round: int) -> Memory:
    past = Past(round - 1, 1.5, 1, 0, samples=3, parameters=5, figures={"loss": 0.5}, weights={"mean": 0.25})
    return Memory(round, (Known(f"id-{round}", "anna", 0, extended=True, counted=round - 1, owed=round),), (past,))


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
            durable.tidy(after)
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
    assert store.load(disk) == Memory(4, (Known("a", "anna", 0, True, 3, None, owner=""),))


def test_a_directory_gives_back_what_was_written(tmp_path: Path) -> None:
    disk = Directory(tmp_path)
    store.save(disk, memory(7))
    ModelStore(disk, keep=1).save(4, [b"head", memoryview(b"body" * 1000)])
    ModelStore(disk, keep=1).save(5, [b"head", memoryview(b"body" * 1000)])
    assert store.load(disk) == memory(7)
    again = ModelStore(disk)
    assert again.rounds == [5]
    assert bytes(again.read(5)) == b"head" + b"body" * 1000
    assert sorted(disk.names()) == ["models.json", "round-000005.npy", "rounds.json"]


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("models.json", lambda data: data[:-1] + b"?", "models.json.*checksum is wrong"),
        ("models.json", lambda data: data.replace(b"fedround 1", b"fedround 2"), "version 2"),
        ("models.json", lambda data: b"[]", "none of ours"),
        ("models.json", lambda data: b"", "none of ours"),
        ("models.json", lambda data: document([{"round": 4}]), "models.json.*an entry that is none"),
        ("round-000004.npy", lambda data: data[:-1], "round-000004.npy.*size"),
        ("round-000004.npy", lambda data: data[:-1] + b"?", "checksum"),
    ],
)
def test_damage_is_told_and_nothing_is_thrown_away(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    ModelStore(Directory(tmp_path)).save(4, model(4))
    file = tmp_path / name
    file.write_bytes(damage(file.read_bytes()))
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataDamaged, match=reason):
        ModelStore(Directory(tmp_path)).read(4)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


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
    assert store.load(Directory(tmp_path)) == Memory(3)


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
    with pytest.raises(DataDamaged, match="lacks something"):
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
    with held(tmp_path, SETTING) as directory:
        assert directory is not None
        assert directory.names() == ["lock"]


def test_a_directory_is_made_and_held_by_one_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "new" / "data"
    second = threading.Event()

    def wait_for_it() -> None:
        with held(path, SETTING):
            second.set()

    with held(path, SETTING):
        with pytest.raises(DataDirectoryHeld, match="held by another process"), held(path, SETTING, within=0.01):
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
        with held(path, SETTING) as disk:
            assert disk is not None
            (path / "rounds.json").write_bytes(document({"round": 3, "participants": []}))
            (path / "rounds.json").chmod(0o644)
            store.save(disk, memory(7))
            ModelStore(disk).save(4, model(4))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
            assert modes == dict.fromkeys(["lock", "models.json", "rounds.json", "round-000004.npy"], 0o600)
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
    with pytest.raises(ConfigurationError, match=rf"{SETTING}=.* cannot be used: No locks available"), held(tmp_path, SETTING):
        pytest.fail("it was given")


def test_what_was_left_and_cannot_be_removed_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "round-000004.npy.part").mkdir()
    with pytest.raises(ConfigurationError, match=rf"{SETTING}=.* cannot be used: Is a directory"), held(tmp_path, SETTING):
        pytest.fail("it was given")


def test_without_a_directory_nothing_is_held() -> None:
    with held(None, SETTING) as nothing:
        assert nothing is None


def test_a_place_where_no_directory_can_be_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"AGGREGATOR_DATA_DIR=.* cannot be used"), held(tmp_path / "file", SETTING):
        pytest.fail("it was given")
