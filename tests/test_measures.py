import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedround.tensors.measures import change, statistics
from fedround.tensors.statistics import Change, Statistics
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e6, 1e6)))
def test_statistics_equal_those_of_numpy(array: Array) -> None:
    found = statistics(np.tile(array, BLOCK // 20))
    assert found.mean == pytest.approx(array.mean(), abs=1e-6, rel=1e-9)
    assert found.stddev == pytest.approx(array.std(), abs=1e-6, rel=1e-9)
    assert found.l2_norm == pytest.approx(np.linalg.norm(np.tile(array, BLOCK // 20)), rel=1e-9)
    assert (found.least, found.largest, found.nonfinite) == (array.min(), array.max(), 0)


def test_statistics_omit_and_count_values_that_are_not_finite() -> None:
    found = statistics(np.array([[1.0, np.nan], [np.inf, 3.0]], "f4"))
    assert (found.mean, found.nonfinite) == (2.0, 2)
    assert statistics(np.array([np.nan])).nonfinite == 1


def test_statistics_do_not_depend_on_the_layout_and_need_no_copy() -> None:
    array = np.arange(4.0 * BLOCK).reshape(4, -1)
    padded = np.zeros((4, 2 * BLOCK), ">f8")
    padded[:, ::2] = array
    tracemalloc.start()
    try:
        found = statistics(padded[:, ::2])
        assert tracemalloc.get_traced_memory()[1] < array.nbytes
    finally:
        tracemalloc.stop()
    assert found == statistics(array)
    assert statistics(np.array(3.0)) == Statistics(1, 3.0, 0.0, 3.0, 3.0, 3.0, 3.0, 0, (0, 0, 0, 0, 0, 0, 0, 1), (3.0,))


def test_statistics_too_large_for_float64_are_infinite() -> None:
    found = statistics(np.array([1e200] * BLOCK + [-1e200]))
    assert (found.stddev, found.l2_norm, found.least, found.largest) == (np.inf, np.inf, -1e200, 1e200)


def test_a_change_has_a_norm_and_a_cosine_to_the_last_change() -> None:
    former, before = np.array([0.0, 0.0]), np.array([1.0, 0.0])
    assert change([before], [np.array([1.0, 5.0])]) == Change(5.0, None)
    cosines = [change([before], [before + step], [former]).cosine_similarity for step in ([2.0, 0.0], [0.0, 3.0], [-4.0, 0.0])]
    assert cosines == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("after", [[1.0, 0.0], [np.nan, 0.0], [np.inf, 0.0], [1e300, 0.0]])
def test_an_update_without_a_direction_has_no_cosine(after: list[float]) -> None:
    assert change([np.array([1.0, 0.0])], [np.array(after)], [np.zeros(2)]).cosine_similarity is None
