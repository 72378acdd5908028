"""Damage of stored files is found and reported, and nothing is removed."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedround.aggregator.store import ModelStore
from fedround.common import durable
from fedround.common.durable import Directory
from fedround.coordinator import store
from fedround.coordinator.plan import Memory
from fedround.coordinator.seats import Known
from fedround.errors import DataDamaged
from support.disks import MemoryDisk
from support.updates import npy


def model(round: int) -> list[bytes | memoryview]:
    return [npy(np.full(5, float(round)))]


def document(data: object) -> bytes:
    """Return an intact file with any content."""
    disk = MemoryDisk()
    durable.save(disk, "name", data)
    return disk.files["name"]


ENTRY = {"round": 4, "size": 1, "checksum": "x"}


PAST = {"round": 0, "seconds": 1.0, "counted": 1, "dropped": 0, "samples": 1, "parameters": 1, "figures": {}}


KNOWN = {"id": "a", "name": "anna", "ordinal": 0, "extended": True, "counted": 3, "owed": None}


def test_the_memory_of_an_older_version_without_owners_and_history_is_read() -> None:
    disk = MemoryDisk()
    durable.save(disk, store.NAME, {"round": 4, "participants": [KNOWN]})
    assert store.load(disk) == Memory(4, (Known("a", "anna", 0, True, 3, None, owner=""),), (), 0)


def test_models_without_their_list_are_damage_and_stay() -> None:
    disk = MemoryDisk()
    for round in range(10):
        ModelStore(disk).save(round, model(round))
    del disk.files["models.json"]
    before = dict(disk.files)
    for _ in range(2):
        with pytest.raises(DataDamaged, match=r"models.json .*it is missing, but the files that it lists exist"):
            ModelStore(disk)
    assert disk.files == before


def test_a_directory_of_the_other_service_is_refused() -> None:
    disk = MemoryDisk()
    store.save(disk, Memory(1))
    with pytest.raises(DataDamaged, match=r"rounds.json of another service exists"):
        ModelStore(disk)
    disk = MemoryDisk()
    ModelStore(disk).save(0, model(0))
    with pytest.raises(DataDamaged, match=r"models.json of another service exists"):
        store.load(disk)


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
def test_an_invalid_list_of_models_is_damage_and_nothing_is_removed(data: object) -> None:
    disk = MemoryDisk({"models.json": document(data), "round-000001.npy": b"a model"})
    with pytest.raises(DataDamaged, match=r"models.json"):
        ModelStore(disk)
    assert "round-000001.npy" in disk.files


@pytest.mark.parametrize(
    "data",
    [
        0,
        [],
        [1],
        {},
        {"round": 3},
        {"round": 10**400, "participants": []},
        {"round": -1, "participants": []},
        {"round": True, "participants": []},
        {"round": 1, "participants": [{"id": "x"}]},
        {"round": 1, "participants": [KNOWN | {"id": 7}]},
        {"round": 1, "participants": [KNOWN | {"counted": "x"}]},
        {"round": 1, "participants": [KNOWN | {"ordinal": 10**400}]},
        {"round": 1, "participants": [KNOWN | {"counted_rounds": None}]},
        {"round": 1, "participants": [KNOWN | {"selected_rounds": -1}]},
        {"round": 1, "participants": "anna"},
        {"round": 1, "participants": [], "history": [{"round": 2}]},
        {"round": 1, "participants": [], "history": [PAST | {"samples": 10**400}]},
        {"round": 1, "participants": [], "history": [PAST | {"late": "x"}]},
        {"round": 1, "participants": [], "history": [PAST | {"seconds": "x"}]},
        {"round": 1, "participants": [], "history": [PAST | {"figures": {"loss": "x"}}]},
        {"round": 1, "participants": [], "history": [PAST | {"figures": 7}]},
        {"round": 1, "participants": [], "history": 7},
    ],
)
def test_a_memory_with_a_missing_or_invalid_field_is_damage(data: object) -> None:
    with pytest.raises(DataDamaged, match=r"rounds.json.*a field is missing, unknown or invalid"):
        store.load(MemoryDisk({"rounds.json": document(data)}))


def test_a_document_that_is_nested_too_deeply_is_damage() -> None:
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
def test_damage_is_reported_and_nothing_is_removed(
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


def test_a_missing_model_is_damage(tmp_path: Path) -> None:
    ModelStore(Directory(tmp_path)).save(4, model(4))
    (tmp_path / "round-000004.npy").unlink()
    with pytest.raises(DataDamaged, match="it cannot be read: No such file"):
        ModelStore(Directory(tmp_path)).read(4)


def test_an_unreadable_list_or_memory_is_damage(tmp_path: Path) -> None:
    for name in ("models.json", "rounds.json"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataDamaged, match=r"models\.json.*it cannot be read: Is a directory"):
        ModelStore(Directory(tmp_path))
    with pytest.raises(DataDamaged, match=r"rounds\.json.*it cannot be read: Is a directory"):
        store.load(Directory(tmp_path))
