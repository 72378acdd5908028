"""Which shard a participant trains, and how it reports this."""

import logging

import pytest

from fedround.common.wire import MAX_SHARDS, Claim
from fedround.participant.round import Shard
from fedround.participant.shards import Shards


def shards(own: Shard | None = None, count: int | None = None, pod_index: int | None = None, name: str = "silo-1") -> Shards:
    return Shards(own, count, pod_index, name)


@pytest.mark.parametrize(
    ("known", "claim"),
    [
        (shards(Shard(3, 7), 10, 1), Claim(7, 3)),
        (shards(Shard(9, 7)), Claim(7, 2)),
        (shards(None, 10, 1), Claim(10, 1)),
        (shards(None, 10, 10), Claim(10, None, asks=True)),  # a pod too many
        (shards(None, 10), Claim(10, None, asks=True)),
        (shards(None, None, 1), None),
        (shards(), None),
        (shards(None, 1), None),  # one part: not split
        (shards(Shard(0, 1)), None),
        (shards(None, MAX_SHARDS + 1), None),
    ],
)
def test_only_a_participant_with_a_split_data_set_claims_a_shard(known: Shards, claim: Claim | None) -> None:
    assert known.claim(None) == claim


def test_a_participant_that_registers_again_claims_its_former_shard() -> None:
    assert shards(None, 10).claim(Shard(4, 10)) == Claim(10, 4, asks=True)
    assert shards(None, 10, 1).claim(Shard(4, 10)) == Claim(10, 1)


@pytest.mark.parametrize(
    ("known", "told", "ordinal", "shard"),
    [
        (shards(Shard(3, 7), 10, 1), (5, 10), 2, Shard(3, 7)),
        (shards(None, 10, 1), (5, 10), 2, Shard(1, 10)),
        (shards(None, 10, 12), (5, 10), 2, Shard(5, 10)),
        (shards(None, 10), (5, 10), 2, Shard(5, 10)),
        (shards(None, 10), None, 2, Shard(2, 10)),
        (shards(None, None, 0), None, 2, Shard(0, 10)),
        (shards(None, 1), None, 2, Shard(0, 1)),
    ],
)
def test_the_sources_of_a_shard_have_an_order(
    known: Shards, told: tuple[int, int] | None, ordinal: int | None, shard: Shard, caplog: pytest.LogCaptureFixture
) -> None:
    assert known.find(told, ordinal) == shard
    assert not caplog.records


def test_without_any_source_the_name_determines_the_shard(caplog: pytest.LogCaptureFixture) -> None:
    assert shards().find(None, None) == shards().find(None, None)
    assert len({shards(name=f"silo-{i}").find(None, None).index for i in range(100)}) == 10
    assert not caplog.records


def test_a_number_beyond_the_last_shard_wraps_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert shards(None, 10).find(None, 12) == Shard(2, 10)
    assert "number 12 wraps to 2" in caplog.text
