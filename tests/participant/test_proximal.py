"""FedProx's proximal term compared with its formula."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround import proximal_gradient
from fedround.errors import WeightsError

numbers = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=5)


@given(numbers)
def test_the_proximal_term_is_the_gradient_of_half_the_squared_distance(pairs: list[tuple[float, float]]) -> None:
    """Li et al. 2020, equation 2: h(w) = F(w) + mu / 2 ||w - w_t||^2. Central differences of squares are exact."""
    weights, anchor = np.array(pairs).T

    def term(w: Any) -> float:
        return float(np.square(w - anchor).sum()) / 2

    steps = np.eye(len(weights)) / 64
    differences = [(term(weights + step) - term(weights - step)) * 32 for step in steps]
    assert proximal_gradient(weights, anchor).tolist() == pytest.approx(differences, abs=1e-7)


def test_named_tensors_keep_their_names_and_dtypes_and_integers_have_no_gradient() -> None:
    weights = {
        "body.w": np.full((2, 2), 3, "f4"),
        "head.w": np.full(2, 1.5, ml_dtypes.bfloat16),
        "steps": np.array(7),
        "mask": np.array([True]),
    }
    anchor = {name: np.ones_like(array) for name, array in weights.items()} | {"frozen": np.zeros(1)}
    found = proximal_gradient(weights, anchor)
    assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
        "body.w": ("float32", [[2, 2], [2, 2]]),
        "head.w": ("bfloat16", [0.5, 0.5]),
    }


MODEL = np.zeros((2, 2))


@pytest.mark.parametrize(
    ("weights", "anchor", "message"),
    [
        (MODEL, MODEL, "the array shares memory with weights; copy the global model before the first step"),
        ({"w": MODEL}, {"w": MODEL[:]}, "w shares memory with weights"),
        ({"w": MODEL}, {"v": MODEL}, "anchor has no tensor w"),
        ({"w": MODEL}, {"w": np.zeros(2)}, r"w has shape \(2,\), but \(2, 2\) in weights"),
        ({"w": MODEL}, MODEL, "of the same kind"),
        (MODEL, {"w": MODEL}, "of the same kind"),
    ],
)
def test_an_anchor_unlike_the_global_model_is_refused(weights: Any, anchor: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        proximal_gradient(weights, anchor)


def test_the_proximal_term_keeps_training_nearer_to_the_global_model() -> None:
    """The silo's optimum is at 1, and the global model at 0. With mu = 1, the optimum of both is half-way."""
    anchor = {"w": np.zeros(3)}
    weights: Mapping[str, Any] = {"w": anchor["w"].copy()}
    for _ in range(200):
        weights["w"][:] -= 0.1 * (weights["w"] - 1 + proximal_gradient(weights, anchor)["w"])
    assert weights["w"].tolist() == pytest.approx([0.5] * 3)
