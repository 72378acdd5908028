"""A Flower app on Flower's own platform and on fedround: the same code makes the same model."""

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.numpy

from support import venvs
from support.processes import free_port, running, until

EXAMPLE = venvs.ROOT / "examples" / "flower_digits"
ROUNDS, SILOS = 2, 2

pytestmark = pytest.mark.timeout(600)  # it may have to be installed


@pytest.fixture(scope="module")
def python() -> str:
    return venvs.required(*venvs.FLOWER)


@contextmanager
def started(*command: str, environ: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environ, cwd=EXAMPLE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def accuracy_under_flower(python: str, home: Path) -> float:
    """Start a SuperLink and SuperNodes, and run the app. Return what its server prints."""
    programs, port = Path(python).parent, free_port()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environ = venvs.environ(str(EXAMPLE)) | {"FLWR_HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin"}
    link = [str(programs / "flower-superlink"), "--insecure", "--disable-runtime-dependency-installation", "--port", str(port)]
    with started(*link, environ=environ):
        until(lambda: answers(port), 60)
        nodes = [
            started(
                *(str(programs / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())),
                *("--node-config", f"partition-id={silo} num-partitions={SILOS}"),
                environ=environ,
            )
            for silo in range(SILOS)
        ]
        with nodes[0], nodes[1]:
            run = [str(programs / "flwr"), "run", ".", "here", "--stream", "--run-config", f"num-server-rounds={ROUNDS}"]
            done = subprocess.run(run, env=environ, cwd=EXAMPLE, capture_output=True, text=True, check=False, timeout=200)
    printed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("accuracy ")]
    assert printed, done.stdout + done.stderr
    return float(printed[0])


def accuracy_under_fedround(python: str, directory: Path) -> float:
    """Follow the README of the example."""
    environ = venvs.environ(str(EXAMPLE))
    initial, model = directory / "initial.safetensors", directory / "model.safetensors"

    def evaluated(script: str) -> str:
        return subprocess.run([python, "-c", script], env=environ, capture_output=True, text=True, check=True, timeout=60).stdout

    imports = "import safetensors.numpy; from digits_flower.task import initial, accuracy;"
    evaluated(f"{imports} safetensors.numpy.save_file(initial(), '{initial}')")
    settings = {"COORDINATOR_ROUNDS": str(ROUNDS), "COORDINATOR_MIN_CLIENTS": str(SILOS), "AGGREGATOR_INITIAL_MODEL": str(initial)}
    with running("platform", **settings) as platform:
        participant = [python, "-m", "fedround", "participant", "--flower", "digits_flower.client_app:app", "--ops-port", "0"]
        participant += ["--shards", str(SILOS), "--coordinator-url", platform.url("COORDINATOR_PORT")]
        silos = [subprocess.Popen([*participant, "--shard", f"{k}/{SILOS}"], env=environ, cwd=EXAMPLE) for k in range(SILOS)]
        assert [silo.wait(100) for silo in silos] == [0] * SILOS
        fetch = [python, "-m", "fedround", "model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "-o", str(model)]
        subprocess.run(fetch, env=environ, check=True, timeout=60)
    assert safetensors.numpy.load_file(model).keys() == {"weight", "bias"}
    return float(evaluated(f"{imports} print(accuracy(safetensors.numpy.load_file('{model}')))"))


def test_a_flower_app_trains_the_same_model_on_both_platforms(python: str, tmp_path: Path) -> None:
    ours, theirs = accuracy_under_fedround(python, tmp_path), accuracy_under_flower(python, tmp_path)
    print(f"\nfedround {ours:.4f}, flwr run {theirs:.4f}")
    assert ours > 0.7
    assert ours == pytest.approx(theirs, abs=1e-9)
