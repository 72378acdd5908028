"""PyTorch models as named tensors, for `train_round` of a `NumPyParticipant`.

Example::

    def train_round(self, weights, /):
        if weights is not None:
            fedround.torch.load(self.model, weights)
        ...  # train as before
        return fedround.Update(len(self.dataset), fedround.torch.tensors(self.model))

Participants exchange the `state_dict()`: parameters and persistent buffers, such as the statistics of batch normalisation. The
state of optimisers and the result of `get_extra_state` stay local. Models may be on any device, compiled or parallel: names are
those of the plain model. Requires PyTorch: `pip install fedround[torch]`.
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
    """Return the tensors of a model by name.

    Args:
        model: A model on any device.
        only: Patterns (`fnmatch`) of the names of tensors to exchange, such as `*.lora_*` for adapters.

    Returns:
        Arrays with the shapes and dtypes of the tensors. If the model is on the CPU, they are views, which training changes. So do
        not train between this call and the end of `train_round`.

    Raises:
        WrongWeights: A tensor cannot be averaged: complex, sparse, quantised or without data.
    """
    return {name: _array(name, tensor) for name, tensor in _state(model, only).items()}


def load(model: "torch.nn.Module", tensors: Mapping[str, Array], *, only: Sequence[str] = ("*",)) -> None:
    """Copy tensors into a model in place, so that its optimisers stay valid.

    Args:
        model: A model on any device.
        tensors: All of `tensors(model, only=only)`, in any order. Only local tensors of the running participant may be missing.
        only: See `tensors`. All other tensors of the model stay unchanged.

    Raises:
        WrongWeights: A tensor is missing, unknown, of another shape, or has floats instead of integers. Nothing is copied then.
    """
    state = _state(model, only)
    own = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in state.items()}
    refuse(differences(own, tensors, "model"), "model")
    with torch.no_grad():
        for name, array in tensors.items():
            state[name].copy_(_tensor(array))


def proximal(model: "torch.nn.Module", anchor: Mapping[str, Array]) -> "torch.Tensor":
    """Return half the squared L2 distance of the trainable parameters from the global model.

    FedProx adds `mu` times this to the loss, so that silos with different data drift less (Li et al., "Federated Optimization in
    Heterogeneous Networks", MLSys 2020). `mu` is often 0.001 to 1.

    Args:
        model: A model on any device.
        anchor: The global model's tensors: the argument of `train_round`. `load` copies them, so training does not change them.

    Returns:
        A scalar tensor on the device of the model, differentiable by autograd.

    Raises:
        WrongWeights: A trainable parameter has no tensor in `anchor`.
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
    """Return the plain model inside parallel or compiled wrappers."""
    while isinstance(model, _PARALLEL) or hasattr(model, _COMPILED):
        model = model.module if isinstance(model, _PARALLEL) else getattr(model, _COMPILED)
    return model


def _state(model: "torch.nn.Module", only: Sequence[str]) -> dict[str, Any]:
    """Return the model's tensors that match `only`, by the names of the plain model."""
    state = {_plain_name(name): value for name, value in _plain(model).state_dict().items() if isinstance(value, torch.Tensor)}
    return {name: value for name, value in state.items() if name.split(".")[-1] != _EXTRA and matches(name, only)}


def _plain_name(name: str) -> str:
    """Return a name without the parts that compilation adds."""
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
