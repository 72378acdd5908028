"""Memory of a group of processes, including the unnamed files that they share; and a participant that measures it."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import fedround
from fedround.tensors.weights import Array

MB = 1_000_000


def footprint(pids: Iterable[int]) -> float:
    """Return MB of processes: the private memory of each, and each shared file once."""
    used, shared = 0, dict[int, int]()
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon", "RssFile")):
                used += int(line.split()[1]) * 1024
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if "memfd:" in str(link.readlink()):
                    found = link.stat()
                    shared[found.st_ino] = found.st_blocks * 512
            except FileNotFoundError:
                pass  # The process has closed it meanwhile.
    return (used + sum(shared.values())) / MB


def peak(pid: int) -> float:
    """MB that a process has needed at most."""
    found = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(found.split()[1]) * 1024 / MB


class Weighed(fedround.NumPyParticipant):
    """A participant that trains in place, and records the memory of its process and its parent process."""

    def __init__(self, *, size: int, journal: str) -> None:
        self.size = size
        self.journal = Path(journal)

    def train_round(self, weights: Array | None, /) -> fedround.Update:
        if weights is None:
            return fedround.Update(1, np.zeros(self.size))
        weights += 1
        with self.journal.open("a") as journal:
            journal.write(f"{footprint([os.getpid(), os.getppid()])}\n")
        return fedround.Update(1, weights)
