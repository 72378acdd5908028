"""Handwritten digits with PyTorch: a convolutional network with batch normalisation. Silos have some of the ten digits each."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedround
import fedround.torch


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()


class Digits(fedround.NumPyParticipant):
    """A participant that trains on the digits of its silo. Silo k of n has the labels k, k + n, k + 2n, ..."""

    def __init__(self, *, epochs: int = 1, workers: int = 0) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.model, self.epochs, self.workers = network(), epochs, workers
        images, labels = digits()
        self.test, self.train = (images[::5], labels[::5]), (images, labels)
        self.keep = torch.arange(len(labels)) % 5 != 0

    def initial_weights(self):
        return fedround.torch.tensors(self.model)

    def evaluate(self, weights, /):
        fedround.torch.load(self.model, weights)
        return fedround.Evaluation(len(self.test[1]), accuracy=accuracy(self.model, *self.test))

    def train_round(self, weights, /):
        round, (images, labels) = fedround.current_round(), self.train
        if weights is not None:
            fedround.torch.load(self.model, weights)
        mine = self.keep & (labels % round.shard.count == round.shard.index)
        loader = DataLoader(TensorDataset(images[mine], labels[mine]), 32, shuffle=True, num_workers=self.workers)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.model.train()
        for _ in range(self.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(x), y).backward()
                optimizer.step()
        return fedround.Update(int(mine.sum()), fedround.torch.tensors(self.model))
