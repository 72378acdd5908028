"""Participants that lie, upload slowly, or never upload: their updates do not count, and the others continue."""

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedround.tensors.weights import Array
from hostile.arena import SIZE, Arena
from hostile.attackers import Dripper, Liar, NeverDeliverer, Together
from hostile.client import Client
from support.processes import Process, kept_in, running, until
from support.updates import claiming, npy, update

pytestmark = pytest.mark.timeout(180)  # other tests use the two cores, too

Lie = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """An arena with short deadlines: a participant that is selected and uploads nothing costs a second."""
    with Arena(tmp_path_factory.mktemp("arena"), COORDINATOR_ROUND_TIMEOUT="1s") as arena:
        yield arena


def lie(change: Callable[[Array], Array], samples: int = 1) -> Lie:
    """Return a lie: the global model after `change`."""
    return lambda model: struct.pack(">I", samples) + npy(change(np.load(io.BytesIO(model)) if model else np.zeros(SIZE)))


def ports(process: Process) -> tuple[int, int]:
    return int(process.ports["COORDINATOR_PORT"]), int(process.ports["AGGREGATOR_PORT"])


LIES = {
    "1e200": lie(lambda model: np.full_like(model, 1e200)),
    "NaN": lie(lambda model: model * np.nan),
    "infinite": lie(lambda model: np.full_like(model, np.inf)),
    "1e9 more": lie(lambda model: model + 1e9),
    "nearly all samples": lie(lambda model: model + 3, samples=2**32 - 1),
    "another shape": lie(lambda model: model.reshape(1, -1)),
    "another size": lie(lambda model: model[1:]),
    "nothing": lambda _: b"",
    "a pickle": lambda _: struct.pack(">I", 1) + npy(np.array([{}], object), allow_pickle=True),
}


def test_invalid_updates_are_refused_and_their_participants_named(arena: Arena) -> None:
    liars = {name: Liar(*ports(arena.coordinator), LIES[name], names=[f"liar-{n}"]) for n, name in enumerate(LIES)}
    arena.withstands(Together(*liars.values()), seen=lambda: all(liar.statuses for liar in liars.values()))
    for n, (name, liar) in enumerate(liars.items()):
        assert liar.statuses, name
        # 404 and 409: the round was over before its lie was whole.
        assert {status for status in liar.statuses if status not in (404, 409)} <= {413, 415, 422}, name
        arena.coordinator.said(f"liar-{n}")


def test_a_participant_that_never_delivers_delays_fewer_and_fewer_rounds(arena: Arena) -> None:
    # Selected in each of the rounds it would allow one in a second.
    arena.withstands(NeverDeliverer(*ports(arena.coordinator), names=["never"]), rounds=20, within=15)


@pytest.mark.parametrize("size", [1 << 30, 4 + 128 + 8 * SIZE], ids=["1 GiB", "the model's size"])
def test_a_slow_upload_does_not_extend_the_deadline(arena: Arena, size: int) -> None:
    arena.withstands(Dripper(*ports(arena.coordinator), size, names=[f"dripper-{size}"]), seconds=5)


BOMBS = {
    "40 dimensions": claiming(str((1,) * 39 + (4,)), data=bytes(16)),
    "40 dimensions in Fortran's order": struct.pack(">I", 1)
    + npy(np.zeros((1,) * 39 + (4,), "<i4", order="F")).replace(b"False", b"True "),
    "64 dimensions": claiming(str((1,) * 64), data=bytes(4)),
    "more than memory": claiming(str((2**40,))),
    "more than can be counted": claiming(str((2**62, 2**62))),
    "nothing": claiming("(0,)"),
    "a long number": claiming("(" + "9" * 5000 + ",)"),
    "an expression": claiming("(2**60,)"),
    "objects": claiming("(1,)", descr="|O", data=bytes(8)),
}


def test_an_oversized_first_update_is_refused_and_the_next_participant_trains(tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "0", **kept_in(tmp_path)}
    with running("platform", **settings) as platform:
        *bombers, honest = [Client(*ports(platform), name=f"silo-{n}") for n in range(len(BOMBS) + 1)]
        for one in (*bombers, honest):
            one.register()
            one.heartbeat()  # whoever waits is selected as soon as the first one has failed
        for bomber, (name, bomb) in zip(bombers, BOMBS.items(), strict=True):
            assert bomber.selected(), name
            assert bomber.upload(bomb).status in (413, 415, 422), name
        assert honest.selected()
        assert honest.upload(update(1, 1.0, 2.0)).status == 200
        until(lambda: platform.status("COORDINATOR_OPS_PORT")["round"] == 1)
        assert platform.end() == 0
    with running("platform", **settings) as again:
        assert np.load(io.BytesIO(again.get("AGGREGATOR_OPS_PORT", "/model"))).tolist() == [1.0, 2.0]


def test_one_poisoner_among_four_does_not_end_the_training(tmp_path: Path) -> None:
    arena = Arena(tmp_path, COORDINATOR_ROUND_TIMEOUT="1s")
    arena.first = lambda: Liar(*ports(arena.coordinator), LIES["1e200"], names=["mallory"])
    with arena:
        arena.trains(10)
        arena.check()
