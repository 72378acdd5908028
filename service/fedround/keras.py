"""Keras models as named tensors, for `train_round` of a `NumPyParticipant`.

Example::

    def train_round(self, weights, /):
        if weights is not None:
            fedround.keras.load(self.model, weights)
        ...  # train as before
        return fedround.Update(len(self.y), fedround.keras.tensors(self.model))

Participants exchange `model.weights`: trainable ones, and others such as the moving averages of batch normalisation. The
state of optimisers, metrics and random generators stays local. This works with every backend of Keras 3. Requires Keras and a
backend, for example `pip install fedround[keras] jax`.
"""

import re
from collections.abc import Mapping
from typing import Any

import keras  # type: ignore[import-not-found, unused-ignore]  # an extra
import numpy as np

from fedround.errors import WrongWeights
from fedround.participant.local import differences, refuse
from fedround.tensors.safetensors import dtype_of
from fedround.tensors.weights import Array

__all__ = ["load", "tensors"]

_NUMBER = re.compile(r"(_\d+)+$")


def tensors(model: "keras.Model") -> dict[str, Array]:
    """Return the tensors of a model by name.

    Args:
        model: A built model, with any backend.

    Returns:
        Arrays with the shapes and dtypes of the variables. A name is the variable's path in the model, such as `dense_1/kernel`.
        Keras numbers unnamed layers across the process. Here the numbers start again in each model: equal models have equal names.

    Raises:
        WrongWeights: The model is not built, so it has no weights yet.
    """
    return {name: _array(variable) for name, variable in _named(model).items()}


def load(model: "keras.Model", tensors: Mapping[str, Array]) -> None:
    """Copy tensors into a model in place, so that its optimiser stays valid.

    Args:
        model: A built model, with any backend.
        tensors: All of `tensors(model)`, in any order. Only local tensors of the running participant may be missing.

    Raises:
        WrongWeights: A tensor is missing, unknown, of another shape, or has floats instead of integers. Nothing is copied then.
    """
    own = _named(model)
    floats = {name: keras.backend.is_float_dtype(variable.dtype) for name, variable in own.items()}
    refuse(differences({name: (tuple(v.shape), floats[name]) for name, v in own.items()}, tensors, "model"), "model")
    for name, array in tensors.items():
        own[name].assign(array.astype(np.float32) if array.dtype.name == "bfloat16" else array)


def _named(model: "keras.Model") -> dict[str, Any]:
    """Return the variables of a model by names that are equal in equal models."""
    found, numbers = dict[str, Any](), dict[str, dict[str, int]]()
    for variable in model.weights:
        name = ""
        for part in variable.path.removeprefix(f"{model.name}/").split("/"):
            name = f"{name}/{_NUMBER.sub('', part)}" if name else _NUMBER.sub("", part)
            alike = numbers.setdefault(name, {})  # parts that differ in their numbers only
            if number := alike.setdefault(part, len(alike)):
                name += f"_{number}"
        if name in found:
            raise WrongWeights(f"two variables of this model have the path {variable.path}: give their layers different names")
        found[name] = variable
    if not found:
        raise WrongWeights("this model is not built: add keras.Input as its first layer, or call model.build(shape)")
    return found


def _array(variable: Any) -> Array:
    array: Array = np.asarray(keras.ops.convert_to_numpy(variable.value))
    return array.astype(dtype_of("BF16"), copy=False) if variable.dtype == "bfloat16" else array
