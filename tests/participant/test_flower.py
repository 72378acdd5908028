"""Code written for Flower, run by fedround with the real `flwr`, in its own environment."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from support import venvs
from support.federation import our_platform
from support.processes import fedround, running

pytestmark = pytest.mark.timeout(600)  # it may have to be installed


@pytest.fixture(scope="module")
def python() -> str:
    return venvs.required(*venvs.FLOWER)


def run(python: str, *arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environ = venvs.environ("tests", **variables)
    return subprocess.run([python, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=120)


def trained(python: str, app: str, cwd: Path) -> Mapping[str, Any]:
    done = run(python, "-m", "support.flower_silos", app, cwd=cwd)
    assert done.returncode == 0, done.stderr
    result: Mapping[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("app", ["legacy", "client_fn", "Regression", "app", "Alone", "instance", "judging", "judge"])
def test_every_style_of_flower_code_learns_the_model(app: str, python: str, tmp_path: Path) -> None:
    result = trained(python, app, tmp_path)
    names = ("head.weight", "head.bias") if app in ("app", "judge") else ("0", "1")
    np.testing.assert_allclose(result["model"][names[0]], [2.0, -1.0, 0.5], atol=0.05)
    np.testing.assert_allclose(result["model"][names[1]], [3.0], atol=0.05)
    if app in ("Alone", "instance"):
        assert result["samples"] == 3 * 90
        # The three silos of the test share the instance, and count to 30 together.
        assert result["figures"]["rounds"] == 10 if app == "Alone" else 28 <= result["figures"]["rounds"] <= 30
    else:
        assert result["samples"] == 27, "each of three silos has its own tenth of 90 rows"
        assert result["figures"]["loss"] < 0.01
        assert result["figures"]["server_round"] == 10
        assert "note" not in result["figures"]


@pytest.mark.parametrize("app", ["app", "legacy", "judging", "judge"])
def test_the_app_evaluates_if_it_can(app: str, python: str, tmp_path: Path) -> None:
    result = trained(python, app, tmp_path)
    if app in ("app", "legacy"):
        assert result["evaluation"] == {}
        return
    assert result["evaluation"]["loss"] < 0.01
    bias = result["model"]["1" if app == "judging" else "head.bias"][0]
    assert result["evaluation"]["bias"] == pytest.approx(bias), "of the final model"


def test_the_state_of_a_client_is_kept_between_rounds(python: str, tmp_path: Path) -> None:
    assert trained(python, "app", tmp_path)["figures"]["calls"] == 10


def test_the_command_runs_an_app_with_the_run_config_of_its_project(python: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nlocal.steps = 5\n")
    with our_platform(rounds=2) as p:
        done = run(
            python,
            *("-m", "fedround", "participant"),
            cwd=tmp_path,
            PARTICIPANT_COORDINATOR_URL=p.url,
            PARTICIPANT_FLOWER="support.flower_silos:legacy",
            PARTICIPANT_OPS_PORT="0",
            PARTICIPANT_OPS_BIND="127.0.0.1",
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("app", "says"), [("legacy", "2 named tensors"), ("app", "no method `initial_weights(self)`")], ids=["legacy", "app"]
)
def test_the_first_model_of_a_client_can_be_written(app: str, says: str, python: str, tmp_path: Path) -> None:
    init = ["--flower", f"support.flower_silos:{app}", "--options", '{"local": {"steps": 5}}', "-o", "initial.safetensors"]
    done = run(python, "-m", "fedround", "model", *init, cwd=tmp_path)
    assert says in done.stdout + done.stderr
    assert (tmp_path / "initial.safetensors").exists() == (app == "legacy")


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nowhere:app", "PARTICIPANT_FLOWER (--flower): there is no module nowhere"),
        ("support.flower_silos:ap", "PARTICIPANT_FLOWER (--flower): support.flower_silos has no ap: did you mean app?"),
        ("support.flower_silos:BIAS", "PARTICIPANT_FLOWER (--flower): support.flower_silos:BIAS must be a ClientApp"),
    ],
    ids=["module", "name", "kind"],
)
def test_an_invalid_app_is_a_configuration_error(app: str, says: str, python: str, tmp_path: Path) -> None:
    participant = ["-m", "fedround", "participant", "--coordinator-url", "http://127.0.0.1:9", "--ops-port", "0"]
    done = run(python, *participant, "--flower", app, cwd=tmp_path)
    assert done.returncode == 78
    assert says in done.stderr


def test_without_flower_the_error_says_how_to_install_it() -> None:
    done = fedround("participant", "--coordinator-url", "http://127.0.0.1:9", "--flower", "a:b", "--ops-port", "0")
    assert done.returncode == 78
    assert "pip install fedround[flower]" in done.stderr


def test_a_client_of_lists_refuses_a_model_with_names(python: str, tmp_path: Path) -> None:
    safetensors.numpy.save_file({"head.weight": np.zeros(3), "head.bias": np.zeros(1)}, tmp_path / "initial.safetensors")
    with running("platform", AGGREGATOR_INITIAL_MODEL=str(tmp_path / "initial.safetensors")) as platform:
        url = platform.url("COORDINATOR_PORT")
        own = {"FLOWER": "support.flower_silos:legacy", "OPTIONS": '{"local": {"steps": 5}}', "MAX_FAILURES": "1", "OPS_PORT": "0"}
        variables = {f"PARTICIPANT_{name}": value for name, value in own.items()}
        done = run(python, "-m", "fedround", "participant", cwd=tmp_path, PARTICIPANT_COORDINATOR_URL=url, **variables)
    assert done.returncode == 70
    assert "the global model has named tensors, a NumPyClient has none" in done.stderr
