"""A PyTorch participant. The worker processes of its `DataLoader` stay from epoch to epoch."""

import numpy as np
import torch  # type: ignore[import-not-found]  # in an environment of its own
from torch.utils.data import DataLoader, TensorDataset  # type: ignore[import-not-found]

import fedround
from fedround.tensors.weights import Array


class Regression(fedround.NumPyParticipant):
    """A participant that learns y = 2x."""

    def __init__(self) -> None:
        x = torch.linspace(-1, 1, 64).reshape(-1, 1)
        self.loader = DataLoader(
            TensorDataset(x, 2 * x), batch_size=16, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
        )
        self.model = torch.nn.Linear(1, 1, bias=False)

    def train_round(self, weights: Array | None, /) -> fedround.Update:
        if weights is not None:
            with torch.no_grad():
                self.model.weight.copy_(torch.from_numpy(weights).reshape(1, 1))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3)
        for _ in range(3):
            for x, y in self.loader:
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(self.model(x), y)
                loss.backward()
                optimizer.step()
        fedround.current_round().report(loss=loss.item())
        return fedround.Update(64, self.model.weight.detach().numpy().reshape(-1).astype(np.float64))
