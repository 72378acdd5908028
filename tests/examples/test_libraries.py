"""The examples of libraries, by their READMEs: three silos with different data, one model, and its file in a fresh model."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedround.tensors.weights import decode
from support import venvs
from support.processes import running

ROOT = Path(__file__).parents[2]
ROUNDS, SILOS = 8, 3

ALONE = """
import json, statistics, sys
import fedround, participant
from fedround.participant.round import Round, Shard, entered

def called(index, method, weights):
    with entered(Round(0, Shard(index, {silos}), lambda metrics: None)):
        return method(weights)

def metric(weights):
    found = [called(index, participant.{name}().evaluate, weights) for index in range({silos})]
    return sum(e.samples * value for e in found for value in e.metrics.values()) / sum(e.samples for e in found)

def alone(index):
    silo, weights = participant.{name}(), None
    for _ in range({rounds}):
        _, weights = called(index, silo.train_round, weights)
    return metric({{name: array.copy() for name, array in weights.items()}})

fetched = fedround.tensors.weights.decode(bytearray(open(sys.argv[1], "rb").read()))
print(json.dumps([metric(fetched), statistics.median(map(alone, range({silos})))]))
"""
"""Prints the metric of a model's file, and that of the median silo after as many rounds alone."""


@pytest.fixture(scope="module")
def python() -> str:
    return venvs.required(*venvs.TORCH, large=True)


@pytest.mark.parametrize(
    ("example", "name", "options", "better"),
    [
        ("digits_torch", "Digits", '{"workers": 2}', lambda together, alone: together > alone + 0.2),
        ("digits_sklearn", "Digits", "{}", lambda together, alone: together > alone + 0.2),
        ("lora", "Digits", "{}", lambda together, alone: together > alone + 0.2),
        ("house_prices_keras", "HousePrices", "{}", lambda together, alone: together < alone * 0.8),
    ],
    ids=["torch", "sklearn", "lora", "keras"],
)
@pytest.mark.timeout(1500)  # PyTorch may have to be installed
def test_three_silos_are_better_than_the_median_silo_and_the_file_is_the_model(
    example: str, name: str, options: str, better: Callable[[float, float], bool], python: str, tmp_path: Path
) -> None:
    environ = venvs.environ(f"examples/{example}", KERAS_BACKEND="torch")

    def fedround(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "fedround", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=100)

    initial, model = tmp_path / "initial.safetensors", tmp_path / "model.safetensors"
    fedround("model", "--init", f"participant:{name}", "-o", str(initial))
    settings = {
        "COORDINATOR_ROUNDS": str(ROUNDS),
        "COORDINATOR_MIN_CLIENTS": str(SILOS),
        "AGGREGATOR_INITIAL_MODEL": str(initial),
        "AGGREGATOR_DATA_DIR": str(tmp_path / "aggregator"),
    }
    with running("platform", **settings) as platform:
        command = [python, "-m", "fedround", "participant", "--class", f"participant:{name}", "--options", options]
        command += ["--shards", str(SILOS), "--coordinator-url", platform.url("COORDINATOR_PORT")]
        command += ["--ops-port", "0", "--ops-bind", "127.0.0.1"]
        silos = [
            subprocess.Popen([*command, "--name", f"silo-{index}", "--shard", f"{index}/{SILOS}"], env=environ)
            for index in range(SILOS)
        ]
        assert [silo.wait(200) for silo in silos] == [0] * SILOS
        fedround("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "-o", str(model))
        reported = platform.status("COORDINATOR_OPS_PORT")["last_rounds"][-1]["evaluation"]
    script = [python, "-c", ALONE.format(name=name, rounds=ROUNDS, silos=SILOS), str(model)]
    done = subprocess.run(script, env=environ, capture_output=True, text=True, check=True, timeout=200)
    fresh, alone = json.loads(done.stdout)
    print(f"\nfederated {fresh:.4f}, median silo alone {alone:.4f}")
    assert list(reported.values()) == [pytest.approx(fresh, abs=1e-6)]
    assert better(fresh, alone)
    if example == "lora":
        tensors = decode(bytearray(model.read_bytes()))
        assert all(".adapter." in name or name.startswith("head.") for name in tensors)
        sent = sum(array.size for array in tensors.values())
        assert f"**{sent:,} of " in (ROOT / "examples" / "lora" / "README.md").read_text()
