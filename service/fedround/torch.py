"""PyTorch models as named tensors, for `train_round` of a `NumPyParticipant`.

Example::

    def train_round(self, weights, /):
        if weights is not None:
            fedround.torch.load(self.model, weights)
        ...  # train as ever
        return fedround.Update(len(self.dataset), fedround.torch.tensors(self.model))

What travels is the `state_dict()`: parameters and persistent buffers, such as the running statistics of batch normalisation. The
state of optimisers, and what `get_extra_state` returns, stays. Models on any device, compiled and parallel ones have the names of
the plain model. Needs PyTorch: `pip install fedround[torch]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]  # an extra

from fedround.errors import WrongWeights
from fedround.participant.abc import matches
from fedround.participant.local import differences, refuse
from fedround.tensors.safetensors import dtype_of, shown
from fedround.tensors.weights import Array

__all__ = ["load", "proximal", "tensors"]

_PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
_COMPILED = "_orig_mod"
_EXTRA = "_extra_state"


def tensors(model: "torch.nn.Module", *, only: Sequence[str] = ("*",)) -> dict[str, Array]:
    """Return the tensors of a model by name, with their own shapes and dtypes.

    Those of a model on the CPU are views: nothing is copied, and they change when the model is trained. So return them from
    `train_round`, and train on in the next one.

    Args:
        model: On any device.
        only: Patterns (`fnmatch`) of the names of the tensors that are exchanged, such as `*.lora_*` for adapters.

    Raises:
        WrongWeights: A tensor cannot be averaged: complex, sparse, quantised or without data.
    """
    return {name: _array(name, tensor) for name, tensor in _state(model, only).items()}


def load(model: "torch.nn.Module", tensors: Mapping[str, Array], *, only: Sequence[str] = ("*",)) -> None:
    """Copy tensors into a model, in place: optimisers that hold its parameters go on with them.

    Args:
        model: On any device.
        tensors: All of `tensors(model, only=only)`, in any order. Local tensors of the running participant may be missing.
        only: See `tensors`. All others stay as they are, and so do those that are missing.

    Raises:
        WrongWeights: A tensor is missing, unknown, of another shape, or floats in place of integers. Nothing was copied then.
    """
    state = _state(model, only)
    own = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in state.items()}
    refuse(differences(own, tensors, "model"), "model")
    with torch.no_grad():
        for name, array in tensors.items():
            state[name].copy_(_tensor(array))


def proximal(model: "torch.nn.Module", anchor: Mapping[str, Array]) -> "torch.Tensor":
    """Return half the squared distance of the parameters that are trained from those of the global model.

    FedProx adds `mu` times this to the loss, so that silos with different data drift less (Li et al., "Federated Optimization in
    Heterogeneous Networks", MLSys 2020). `mu` is often 0.001 to 1.

    Args:
        model: On any device.
        anchor: The global model's tensors, such as `train_round` was given. `load` has copied them, so they stay what they are.

    Raises:
        WrongWeights: A parameter that is trained has no tensor in `anchor`.
    """
    total = torch.zeros(())
    for name, parameter in _plain(model).named_parameters():
        if parameter.requires_grad:
            name = _plain_name(name)
            if name not in anchor:
                raise WrongWeights(f"{shown(name)} is trained, and the global model has no such tensor")
            distance = parameter - _tensor(anchor[name]).to(parameter.device, parameter.dtype)
            total = total.to(parameter.device) + distance.square().sum() / 2
    return total


def _plain(model: Any) -> Any:
    """Return the model within those that run it in parallel, or compiled."""
    while isinstance(model, _PARALLEL) or hasattr(model, _COMPILED):
        model = model.module if isinstance(model, _PARALLEL) else getattr(model, _COMPILED)
    return model


def _state(model: "torch.nn.Module", only: Sequence[str]) -> dict[str, Any]:
    """Return the tensors of a model that match `only`, as they are in it, by the names of the plain model."""
    state = {_plain_name(name): value for name, value in _plain(model).state_dict().items() if isinstance(value, torch.Tensor)}
    return {name: value for name, value in state.items() if name.split(".")[-1] != _EXTRA and matches(name, only)}


def _plain_name(name: str) -> str:
    """Return a name without the parts that compiling adds."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _array(name: str, tensor: Any) -> Array:
    try:
        if tensor.is_complex():
            raise TypeError("complex numbers have no dtype in a model")
        tensor = tensor.detach().cpu().contiguous()
        narrow = tensor.dtype == torch.bfloat16
        array: Array = tensor.view(torch.int16).numpy() if narrow else tensor.numpy()
    except (TypeError, ValueError, RuntimeError) as error:  # sparse, quantised, without data
        raise WrongWeights(f"{shown(name)} cannot be averaged: {error}") from None
    return array.view(dtype_of("BF16")) if narrow else array


def _tensor(array: Array) -> Any:
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
