"""PyTorch, Keras and scikit-learn, each in its own environment."""

import subprocess

import numpy as np
import pytest

from support import venvs
from support.federation import our_platform


@pytest.fixture(scope="module")
def python() -> str:
    return venvs.required(*venvs.TORCH, large=True)  # minutes and gigabytes


@pytest.mark.timeout(1500)  # it may have to be installed
@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_data_loader_with_its_own_processes_trains_and_ends(isolation: str, python: str) -> None:
    with our_platform(rounds=3) as p:
        own = {
            "COORDINATOR_URL": p.url,
            "CLASS": "support.torch_silo:Regression",
            "OPS_PORT": "0",
            "OPS_BIND": "127.0.0.1",
            "ISOLATION": isolation,
        }
        environ = venvs.environ("tests", **{f"PARTICIPANT_{name}": value for name, value in own.items()})
        done = subprocess.run(
            [python, "-m", "fedround", "participant"], env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1, 1, 1]
        model = p.platform.aggregator.model
    assert model is not None
    assert np.frombuffer(model.buffers[1])[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("library", ["torch", "keras", "sklearn"])
def test_a_model_becomes_named_tensors_and_back(library: str, python: str) -> None:
    environ = venvs.environ("tests", KERAS_BACKEND="torch")
    # Keras asks PyTorch for arrays in a way that NumPy 2 warns of.
    command = [python, "-W", "error", "-W", "ignore:__array__:DeprecationWarning", "-m", f"support.{library}_tensors"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr
