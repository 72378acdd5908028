"""Local tensors for users: in a participant with a data directory, and in the files of `fedround model`."""

import json
import signal
from pathlib import Path

import pytest
import safetensors.numpy

from support.processes import fedround, running, until

LOCAL = {"PARTICIPANT_CLASS": "support.personal:Personal", "PARTICIPANT_LOCAL_TENSORS": "head.*, *.running_mean"}


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_local_tensors_survive_a_killed_participant(isolation: str, tmp_path: Path) -> None:
    silo = LOCAL | {"PARTICIPANT_ISOLATION": isolation, "PARTICIPANT_DATA_DIR": str(tmp_path / "silo")}
    with running("platform", COORDINATOR_ROUNDS="1000000", COORDINATOR_MIN_CLIENTS="1") as platform:
        silo["PARTICIPANT_COORDINATOR_URL"] = platform.url("COORDINATOR_PORT")
        with running("participant", **silo) as participant:
            participant.said("round 2: ")
            participant.send(signal.SIGKILL)
            participant.wait()
        kept = safetensors.numpy.load_file(tmp_path / "silo" / "local.safetensors")
        assert kept.keys() == {"head.w", "bn.running_mean"}
        assert kept["head.w"][0] >= 2
        with running("participant", **silo) as again:
            again.said("restored 2 local tensors")
            again.said(rf"head {kept['head.w'][0]:g} came back")


@pytest.mark.parametrize("isolation", ["process", "thread"])
@pytest.mark.timeout(120)  # a participant waits for the former one's end
def test_a_directory_belongs_to_one_participant(isolation: str, tmp_path: Path) -> None:
    silo = LOCAL | {"PARTICIPANT_ISOLATION": isolation, "PARTICIPANT_DATA_DIR": str(tmp_path)}
    with running("platform", COORDINATOR_MIN_CLIENTS="2") as platform:
        silo["PARTICIPANT_COORDINATOR_URL"] = platform.url("COORDINATOR_PORT")
        with running("participant", **silo) as first:
            until(lambda: first.probe("/readyz")[0] == 200)
            done = fedround("participant", **silo)
    assert done.returncode == 75
    assert "one directory belongs to one service" in done.stderr


def test_an_invalid_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "local.safetensors").write_bytes(b"nonsense")
    settings = LOCAL | {"PARTICIPANT_DATA_DIR": str(tmp_path), "PARTICIPANT_COORDINATOR_URL": "http://127.0.0.1:9"}
    done = fedround("participant", **settings)
    assert done.returncode == 78
    assert "PARTICIPANT_DATA_DIR: local.safetensors cannot be read" in done.stderr
    assert "delete the file to start with new tensors" in done.stderr


def test_a_class_with_another_format_has_no_local_tensors() -> None:
    settings = LOCAL | {"PARTICIPANT_CLASS": "support.personal:Opaque", "PARTICIPANT_COORDINATOR_URL": "http://127.0.0.1:9"}
    done = fedround("participant", **settings)
    assert done.returncode == 78
    assert "PARTICIPANT_LOCAL_TENSORS: Opaque is not a fedround.NumPyParticipant" in done.stderr


def test_an_initial_model_is_written_without_local_tensors(tmp_path: Path) -> None:
    file = tmp_path / "initial.safetensors"
    done = fedround("model", "--init", "support.personal:Personal", "--options", '{"start": 3}', "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 weights (float32) in 1 named tensors" in done.stdout
    found = safetensors.numpy.load_file(file)
    assert found.keys() == {"body.w"}
    assert found["body.w"].tolist() == [3, 3]
    platform = {"AGGREGATOR_INITIAL_MODEL": str(file), "COORDINATOR_ROUNDS": "2"}
    with (
        running("platform", **platform) as p,
        running("participant", PARTICIPANT_COORDINATOR_URL=p.url("COORDINATOR_PORT"), **LOCAL) as participant,
    ):
        assert participant.wait() == 0
        output = tmp_path / "model.safetensors"
        fetched = fedround("model", "--from", p.url("AGGREGATOR_OPS_PORT"), "-o", str(output))
        assert (fetched.returncode, fetched.stderr) == (0, "")
    assert safetensors.numpy.load_file(output)["body.w"].tolist() == [5, 5]
    header = output.read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    assert len(metadata.pop("fedround.run_id")) == 36
    assert metadata == {"format": "pt", "fedround.round": "1", "fedround.run": "default"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "support.personal:Opaque"], "is not a fedround.NumPyParticipant"),
        (["--init", "support.silos:Plus1"], "has no method `initial_weights"),
        (["--init", "support.personal"], "--init must be module:name"),
        (["--init", "nowhere:Class"], "--init: there is no module nowhere"),
        (["--init", "support.personal:Personal", "--options", "{"], "invalid JSON"),
    ],
    ids=["opaque", "no weights", "no class", "no module", "no JSON"],
)
def test_an_invalid_initial_model_is_a_configuration_error(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = fedround("model", *arguments, "-o", str(tmp_path / "model.npy"))
    assert done.returncode == 78
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_misleading_file_name_is_a_warning(tmp_path: Path) -> None:
    done = fedround("model", "--init", "support.personal:Personal", "-o", str(tmp_path / "model.npy"))
    assert done.stdout.endswith("; note that its format is safetensors\n")
    assert done.returncode == 0
