"""The memory of a platform agrees with docs/guides/sizing.md."""

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import running

MODEL = 40_000_000
"""Bytes of a float32."""
CLASS = f"""
import numpy as np
import fedround

class Wide(fedround.NumPyParticipant):
    def __init__(self, *, tensors):
        self.tensors = tensors

    def train_round(self, weights):
        if weights is None:
            weights = {{f"layer{{n}}": np.zeros({MODEL} // 4 // self.tensors, "f4") for n in range(self.tensors)}}
        for array in weights.values():
            array += 1
        return fedround.Update(1, weights)
"""


def peak(pid: int) -> int:
    """Return the peak of the resident memory, in bytes."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's peak of a process")
@pytest.mark.parametrize("tensors", [4, 200])
def test_many_small_tensors_need_no_more_memory_than_few_large_ones(tensors: int, tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(CLASS)
    silo = {"PARTICIPANT_CLASS": "wide:Wide", "PARTICIPANT_OPTIONS": f'{{"tensors": {tensors}}}'}
    silo["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with running("platform", COORDINATOR_ROUNDS="4", COORDINATOR_MIN_CLIENTS="2") as platform, ExitStack() as stack:
        before = peak(platform.pid)
        url = platform.url("COORDINATOR_PORT")
        silos = [
            stack.enter_context(running("participant", PARTICIPANT_COORDINATOR_URL=url, PARTICIPANT_NAME=name, **silo))
            for name in ("a", "b")
        ]
        assert [participant.wait() for participant in silos] == [0, 0]
        assert peak(platform.pid) - before < 5 * MODEL
