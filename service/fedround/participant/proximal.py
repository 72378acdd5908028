"""FedProx's proximal term, for training code that computes its gradients in NumPy. No I/O."""

from collections.abc import Mapping
from typing import overload

import numpy as np

from fedround.errors import WrongWeights
from fedround.tensors.safetensors import shown
from fedround.tensors.weights import Array, Weights


@overload
def proximal_gradient(weights: Array, anchor: Array) -> Array: ...


@overload
def proximal_gradient(weights: Mapping[str, Array], anchor: Mapping[str, Array]) -> dict[str, Array]: ...


def proximal_gradient(weights: Weights, anchor: Weights) -> Weights:
    """Return the gradient of half the squared distance between the weights and the global model.

    FedProx adds `mu` times this to the gradient of the loss, so that silos with different data drift less (Li et al., "Federated
    Optimization in Heterogeneous Networks", MLSys 2020, equation 2). Usual values of `mu` are 0.001 to 1.

    Args:
        weights: The current weights: an array, or named tensors.
        anchor: A copy of the argument of `train_round`, made before the first step. Tensors that `weights` lacks are ignored.

    Returns:
        An array, or a tensor for each floating-point tensor of `weights`, of the same shape and dtype.

    Raises:
        WrongWeights: `anchor` lacks a tensor, has another shape, or shares memory with `weights`: their distance would always be 0.
    """
    if not isinstance(weights, Mapping) and not isinstance(anchor, Mapping):
        return _difference(weights, anchor, "the array")
    if not (isinstance(weights, Mapping) and isinstance(anchor, Mapping)):
        raise WrongWeights("weights and anchor must be of the same kind: two arrays, or two mappings of names to arrays")
    if missing := [name for name in weights if name not in anchor]:
        raise WrongWeights(f"anchor has no tensor {shown(missing[0])}")
    floats = [name for name, array in weights.items() if array.dtype.kind not in "iub"]
    return {name: _difference(weights[name], anchor[name], shown(name)) for name in floats}


def _difference(weights: Array, anchor: Array, what: str) -> Array:
    if weights.shape != anchor.shape:
        raise WrongWeights(f"anchor: {what} has shape {anchor.shape}, but {weights.shape} in weights")
    if np.shares_memory(weights, anchor):
        raise WrongWeights(f"anchor: {what} shares memory with weights; copy the global model before the first step")
    difference: Array = weights - anchor
    return difference
