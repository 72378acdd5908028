import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround.common.wire import MAX_METRICS, MAX_METRICS_BYTES
from fedround.participant.round import Round, Shard, current_round, encode_metrics, entered
from fedround.tensors.statistics import LARGEST


def make(told: list[Mapping[str, float]] | None = None) -> Round:
    return Round(3, Shard(0, 1), ([] if told is None else told).append)


def test_there_is_a_current_round_only_within_one() -> None:
    with pytest.raises(RuntimeError, match="within train_round"):
        current_round()
    round = make()
    with entered(round):
        assert current_round() is round
        assert repr(round) == "<round 3>"
    with pytest.raises(RuntimeError):
        current_round()


def test_reported_metrics_are_collected_and_the_last_value_of_a_name_counts() -> None:
    told: list[Mapping[str, float]] = []
    round = make(told)
    with entered(round):
        round.report(loss=1.0, accuracy=0.5)
        round.report(loss=np.float32(0.5))
    assert told == [{"loss": 1.0, "accuracy": 0.5}, {"loss": 0.5}]
    assert round.metrics == {"loss": 0.5, "accuracy": 0.5}
    assert encode_metrics(round.metrics) == '{"loss":0.5,"accuracy":0.5}'


def test_a_loss_of_each_batch_is_reported_at_most_once_a_second_and_at_the_end() -> None:
    told: list[Mapping[str, float]] = []
    round = make(told)
    with entered(round):
        for batch in range(3000):
            round.report(loss=batch)
    assert len(told) < 30
    assert (told[0], told[-1]) == ({"loss": 0.0}, {"loss": 2999.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), 10**400, -1e291])
def test_a_value_that_is_not_finite_is_dropped_with_one_warning(value: float, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Mapping[str, float]] = []
    round = make(told)
    round.report(accuracy=1.0, loss=value)
    round.report(loss=value)
    assert told == [{"accuracy": 1.0}]
    assert round.metrics == {"accuracy": 1.0}
    (warning,) = caplog.messages
    assert warning.startswith("round 3: the value of 'loss' is dropped, because it is not finite: ")


def test_the_number_of_warnings_about_dropped_values_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    round = make()
    for n in range(1000):
        round.report(**{f"loss_{n}": float("nan")})
    assert len(caplog.messages) == MAX_METRICS


@pytest.mark.parametrize("value", ["much", None])
def test_a_metric_must_be_a_number(value: float) -> None:
    round = make()
    with pytest.raises(ValueError, match="loss must be a number"):
        round.report(accuracy=1.0, loss=value)
    assert round.metrics == {}


def test_a_round_reports_a_bounded_number_of_names() -> None:
    round = make()
    round.report(**{f"name{i}": 0.0 for i in range(MAX_METRICS)})
    round.report(name0=1.0)
    with pytest.raises(ValueError, match="at most 20 names"):
        round.report(more=1.0)


def test_a_round_reports_a_bounded_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="2048 bytes"):
        make().report(**{"ä" * 50 + str(n): 1.0 for n in range(10)})  # each is six bytes in JSON


@pytest.mark.parametrize("name", ["n" * 65, "two\nlines"])
def test_the_name_of_a_metric_must_fit_a_line(name: str) -> None:
    with pytest.raises(ValueError, match="use 1 to 64 printable characters"):
        make().report(**{name: 1.0})


@given(st.dictionaries(st.text(min_size=1, max_size=150), st.floats(allow_nan=False, allow_infinity=False), max_size=25))
def test_every_accepted_metric_reaches_the_wire(metrics: dict[str, float]) -> None:
    round = make()
    try:
        round.report(**metrics)
    except ValueError:
        return
    header = encode_metrics(round.metrics)
    assert len(header.encode("ascii")) <= MAX_METRICS_BYTES
    assert json.loads(header) == {name: value for name, value in metrics.items() if abs(value) <= LARGEST}


@given(st.integers(0, 50), st.integers(1, 12))
def test_every_row_is_in_one_shard_and_sizes_differ_by_one_at_most(rows: int, count: int) -> None:
    parts = [Shard(index, count).of(np.arange(rows)) for index in range(count)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_of_an_array_is_a_view() -> None:
    data = np.arange(10)
    assert np.shares_memory(Shard(1, 3).of(data), data)
