"""The examples with digits, as their READMEs say: three silos of different digits, one model, and its file in a fresh one."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support import venvs
from support.processes import running

ROOT = Path(__file__).parents[2]
ROUNDS, SILOS = 8, 3

ALONE = """
import json, statistics, sys
import fedround, participant
from fedround.participant.round import Round, Shard, entered

def trained(silo, index, weights):
    figures = {{}}
    with entered(Round(0, Shard(index, {silos}), figures.update)):
        return silo.train_round(weights).weights, figures["accuracy"]

def alone(index):
    silo, weights = participant.Digits(), None
    for _ in range({rounds}):
        weights, _ = trained(silo, index, weights)
    return trained(silo, index, weights)[1]

fetched = fedround.weights.decode(bytearray(open(sys.argv[1], "rb").read()))
print(json.dumps([trained(participant.Digits(), 0, fetched)[1], statistics.median(map(alone, range({silos})))]))
"""


@pytest.fixture(scope="module")
def python() -> str:
    if not os.environ.get("CI") and not venvs.made(venvs.TORCH[0]):
        pytest.skip("torch is not installed in .cache; CI=true installs it")
    try:
        return venvs.python(*venvs.TORCH)
    except venvs.NotInstalled as error:
        pytest.fail(str(error))


def environment(example: str) -> dict[str, str]:
    paths = [str(ROOT / "service"), str(ROOT / "examples" / example), sysconfig.get_paths()["purelib"]]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("example", ["digits_torch", "digits_sklearn"])
@pytest.mark.timeout(1500)  # PyTorch may have to be installed
def test_three_silos_beat_the_median_silo_alone_and_the_file_is_the_model(example: str, python: str, tmp_path: Path) -> None:
    environ = environment(example)

    def fedround(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "fedround", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=100)

    initial, model = tmp_path / "initial.safetensors", tmp_path / "model.safetensors"
    fedround("model", "--init", "participant:Digits", "-o", str(initial))
    settings = {
        "COORDINATOR_ROUNDS": str(ROUNDS),
        "COORDINATOR_MIN_CLIENTS": str(SILOS),
        "AGGREGATOR_INITIAL_MODEL": str(initial),
        "AGGREGATOR_DATA_DIR": str(tmp_path / "aggregator"),
    }
    with running("platform", **settings) as platform:
        own = '{"workers": 2}' if example == "digits_torch" else "{}"
        options = ["--options", own, "--shards", str(SILOS), "--ops-port", "0", "--ops-bind", "127.0.0.1"]
        command = [python, "-m", "fedround", "participant", "--class", "participant:Digits", *options]
        command += ["--coordinator-url", platform.url("COORDINATOR_PORT")]
        silos = [
            subprocess.Popen([*command, "--name", f"silo-{index}", "--shard", f"{index}/{SILOS}"], env=environ)
            for index in range(SILOS)
        ]
        assert [silo.wait(200) for silo in silos] == [0] * SILOS
        fedround("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "--round", str(ROUNDS - 2), "-o", str(model))
        reported = platform.status("COORDINATOR_OPS_PORT")["last_rounds"][-1]["figures"]["accuracy"]
    script = [python, "-c", ALONE.format(rounds=ROUNDS, silos=SILOS), str(model)]
    done = subprocess.run(script, env=environ, capture_output=True, text=True, check=True, timeout=200)
    fresh, alone = json.loads(done.stdout)
    print(f"\nfederated {reported:.4f}, median silo alone {alone:.4f}")
    assert fresh == pytest.approx(reported, abs=1e-6)
    assert fresh > alone + 0.2
