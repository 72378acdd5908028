"""A participant that trains a neural network with PyTorch.

Load the trained model: model = network(); model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
"""

import functools

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedround
import fedround.torch


# ---------------------------------------------------------------- YOUR DATA: replace the lines of these two functions.
@functools.cache  # once, not in each round
def load_data(shard: fedround.Shard) -> TensorDataset:
    """Return the features and the targets of this silo.

    These rows are generated, and differ for each `shard.index`. A silo with its own file needs no shard:
    *columns, target = np.loadtxt("/silo/data.csv", delimiter=",", skiprows=1, dtype="float32").T
    """
    x = np.random.default_rng(shard.index).normal(size=(200, 3)).astype("float32")
    y = np.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:]
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


def network() -> nn.Module:
    """Return the model with the weights that all participants begin with."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))


# ----------------------------------------------------------------


class Participant(fedround.NumPyParticipant):
    """A participant that trains the network by stochastic gradient descent.

    Args:
        epochs: Passes over the data in a round.
    """

    def __init__(self, *, epochs: int = 2) -> None:
        self.model, self.epochs = network(), epochs

    def evaluate(self, weights: dict[str, np.ndarray]) -> fedround.Evaluation:
        x, y = load_data(fedround.current_round().shard).tensors
        fedround.torch.load(self.model, weights)
        with torch.no_grad():
            return fedround.Evaluation(len(y), loss=nn.functional.mse_loss(self.model(x), y).item())

    def train_round(self, weights: dict[str, np.ndarray] | None) -> fedround.Update:
        round = fedround.current_round()
        data = load_data(round.shard)
        if weights is not None:  # in the first round there is no global model
            fedround.torch.load(self.model, weights)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        for _ in range(self.epochs):
            if round.cancelled:
                break
            for x, y in DataLoader(data, batch_size=20, shuffle=True):
                optimizer.zero_grad()
                nn.functional.mse_loss(self.model(x), y).backward()
                optimizer.step()
        return fedround.Update(samples=len(data), weights=fedround.torch.tensors(self.model))
