"""Checks of fedround.torch, for a Python that has PyTorch. A failed check raises an exception."""

import ml_dtypes
import numpy as np
import torch  # type: ignore[import-not-found]  # in an environment of its own

import fedround
import fedround.torch
from fedround.errors import WrongWeights
from fedround.participant.round import Round, Shard, entered
from fedround.tensors.weights import Array


def network() -> "torch.nn.Module":
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2).to(torch.bfloat16))


def complaint(model: "torch.nn.Module", tensors: dict[str, Array]) -> str:
    try:
        fedround.torch.load(model, tensors)
    except WrongWeights as error:
        return str(error)
    return ""


class Odd(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """A module with a buffer that may not be an array, and with a tensor as its extra state."""

    def __init__(self, buffer: "torch.Tensor") -> None:
        super().__init__()
        self.register_buffer("odd", buffer)

    def get_extra_state(self) -> "torch.Tensor":
        return torch.ones(3)

    def set_extra_state(self, state: "torch.Tensor") -> None: ...


def refusal(buffer: "torch.Tensor") -> str:
    try:
        fedround.torch.tensors(Odd(buffer))
    except WrongWeights as error:
        return str(error)
    return ""


def main() -> None:
    """Run all checks."""
    model, other = network(), network()
    found = fedround.torch.tensors(model)
    assert found.keys() == model.state_dict().keys()
    assert found["1.num_batches_tracked"].dtype == np.int64
    assert found["1.num_batches_tracked"].shape == ()
    assert found["2.weight"].dtype == ml_dtypes.bfloat16

    optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    parameter = other[0].weight
    fedround.torch.load(other, {name: array.copy() for name, array in found.items()})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other[0].weight is parameter is optimizer.param_groups[0]["params"][0]
    assert parameter.requires_grad

    for wrapped in (torch.nn.DataParallel(other), torch.compile(other), torch.nn.DataParallel(torch.compile(other))):
        assert fedround.torch.tensors(wrapped).keys() == found.keys()
        fedround.torch.load(wrapped, found)
    other[0] = torch.compile(other[0])
    assert fedround.torch.tensors(other).keys() == found.keys()

    read_only = {name: array.copy() for name, array in found.items()}
    for array in read_only.values():
        array.flags.writeable = False
    fedround.torch.load(model, read_only)

    before = {name: array.copy() for name, array in found.items()}
    wrong = {name: array + 1 for name, array in before.items()}
    del wrong["0.bias"]
    wrong |= {"2.bias": np.zeros(5, "f4"), "head": np.zeros(1)}
    counter = {"1.num_batches_tracked": np.array(2.7)}
    assert "1.num_batches_tracked is float64, but the model has integers there" in complaint(model, before | counter)
    assert complaint(model, {name: a.astype(a.dtype.newbyteorder(">")) for name, a in before.items()}) == ""
    text = complaint(model, wrong)
    for part in ("0.bias is missing", "head is not in the model", "2.bias has shape (5,), the model (2,)"):
        assert part in text, text
    assert all(np.array_equal(before[name], array) for name, array in fedround.torch.tensors(model).items())

    round = Round(0, Shard(0, 1), lambda _figures: None)
    round.local_tensors = ("2.*",)
    body = {name: array for name, array in before.items() if not name.startswith("2.")}
    assert "2.bias is missing" in complaint(model, body)
    with entered(round):
        assert complaint(model, body) == ""

    some = fedround.torch.tensors(model, only=["1.running_*", "2.bias"])
    assert some.keys() == {"1.running_mean", "1.running_var", "2.bias"}
    former = before["0.bias"].copy()
    fedround.torch.load(model, {name: array + array.dtype.type(1) for name, array in some.items()}, only=["1.running_*", "2.bias"])
    assert np.array_equal(fedround.torch.tensors(model)["0.bias"], former)
    assert np.array_equal(fedround.torch.tensors(model)["1.running_var"], before["1.running_var"] + 1)

    with torch.no_grad():
        other[2].bias.zero_()  # no rounding in bfloat16
    anchor = {name: array.copy() for name, array in fedround.torch.tensors(other).items()}
    assert fedround.torch.proximal(other, anchor).item() == 0
    with torch.no_grad():
        other[2].bias += 2
    far = fedround.torch.proximal(torch.nn.DataParallel(other), anchor)
    assert far.item() == 4  # half of 2 * (2 * 2)
    far.backward()
    assert other[2].bias.grad.tolist() == [2, 2]
    other[2].requires_grad_(False)
    assert fedround.torch.proximal(other, anchor).item() == 0
    text = ""
    try:
        fedround.torch.proximal(network(), {})
    except WrongWeights as error:
        text = str(error)
    assert "is trained, and the global model has no such tensor" in text

    assert fedround.torch.tensors(Odd(torch.zeros(2))).keys() == {"odd"}
    z = torch.zeros(2, dtype=torch.complex64)
    for no_array in (z, z.conj(), torch.eye(2).to_sparse(), torch.zeros(2, device="meta")):
        assert refusal(no_array).startswith("odd cannot be averaged: "), refusal(no_array)
    print("all of it")


if __name__ == "__main__":
    main()
