"""Federated fine-tuning with LoRA. The base model is frozen in every silo; only the adapters and the head are sent."""

from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

import fedround
import fedround.torch

WIDTH, HEADS, BLOCKS, RANK = 64, 4, 2, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """The base model. It reads an image as a sequence of 8 tokens: one per row of 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(8, WIDTH), nn.Parameter(torch.randn(8, WIDTH) / 10)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(BLOCKS))), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.embed(x) + self.positions)).flatten(1)


class LoRA(nn.Module):
    """A frozen linear layer with a trainable low-rank adapter: y = W x + B A x. B starts at zero."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        a, b = nn.Linear(frozen.in_features, RANK, bias=False), nn.Linear(RANK, frozen.out_features, bias=False)
        nn.init.zeros_(b.weight)
        self.frozen, self.adapter = frozen, nn.Sequential(OrderedDict(A=a, B=b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.adapter(x)


SHARED = ("*.adapter.*", "head.*")
"""Patterns of the names of the tensors that are sent."""


class Network(nn.Module):
    """A frozen base with an adapter on each linear layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # All silos must have the same base. Load a pretrained model here instead.
        self.base = Transformer().requires_grad_(False)
        self.head = nn.Linear(8 * WIDTH, 10)
        for name, module in list(self.base.named_modules()):
            if isinstance(module, nn.Linear):
                self.base.set_submodule(name, LoRA(module))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.base(x))


def digits(*, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of shape (n, 8, 8) and their labels. Every fifth digit is held out for the test."""
    data = load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target)
    chosen = (torch.arange(len(labels)) % 5 == 0) == test
    return images[chosen], labels[chosen]


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()


class Digits(fedround.NumPyParticipant):
    """A participant that trains on the digits of its silo. Silo k of n has the labels k, k + n, k + 2n, ..."""

    def __init__(self, *, epochs: int = 1) -> None:
        torch.set_num_threads(1)
        self.model, self.epochs = Network(), epochs
        self.train, self.test = digits(test=False), digits(test=True)

    def initial_weights(self):
        return fedround.torch.tensors(self.model, only=SHARED)

    def evaluate(self, weights, /):
        fedround.torch.load(self.model, weights, only=SHARED)
        return fedround.Evaluation(len(self.test[1]), accuracy=accuracy(self.model, *self.test))

    def train_round(self, weights, /):
        round, (images, labels) = fedround.current_round(), self.train
        if weights is not None:
            fedround.torch.load(self.model, weights, only=SHARED)
        mine = labels % round.shard.count == round.shard.index
        loader = DataLoader(TensorDataset(images[mine], labels[mine]), 32, shuffle=True)
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.002)
        for _ in range(self.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(x), y).backward()
                optimizer.step()
        return fedround.Update(int(mine.sum()), fedround.torch.tensors(self.model, only=SHARED))
