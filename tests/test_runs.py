"""Runs for operators: one continues, another one begins, and the history of earlier runs can be read."""

import csv
import io
import json
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from uuid import uuid4

import numpy as np
import pytest

from fedround.coordinator.archive import Archive
from fedround.coordinator.run import Run
from support.footprint import peak
from support.http_server import Handler, Server
from support.processes import Process, fedround, joining, kept_in, running, until


def silo(platform: Process, **options: object) -> dict[str, str]:
    return joining(platform, "configured:Configured", options)


@contextmanager
def trained(tmp_path: Path, rounds: int = 3, **settings: str) -> Iterator[Process]:
    """A platform on which one participant has completed a run."""
    with running("platform", COORDINATOR_ROUNDS=str(rounds), **kept_in(tmp_path), **settings) as platform:
        with running("participant", **silo(platform)) as participant:
            assert participant.wait() == 0
        yield platform


def model(platform: Process) -> Any:
    with platform.open("AGGREGATOR_OPS_PORT", "/model") as answer:
        return np.load(io.BytesIO(answer.read()))


def history(platform: Process, run: str = "") -> Any:
    return json.loads(platform.get("COORDINATOR_OPS_PORT", f"/history?run={run}"))


def test_the_same_name_continues_a_run_and_another_starts_one(tmp_path: Path) -> None:
    with trained(tmp_path, COORDINATOR_RUN_NAME="first") as platform:
        first = history(platform)["run"]
        assert (first["name"], first["reason"], first["rounds"], first["first"]) == ("first", "complete", 3, 0)
    with trained(tmp_path, rounds=5, COORDINATOR_RUN_NAME="first") as platform:
        again = history(platform)
        assert again["run"]["id"] == first["id"]
        assert [round["round"] for round in again["rounds"]] == [0, 1, 2, 3, 4]
        assert model(platform).tolist() == [5.0]
    with trained(tmp_path, rounds=2, COORDINATOR_RUN_NAME="second") as platform:
        assert [round["round"] for round in history(platform)["rounds"]] == [5, 6]
        assert [round["round"] for round in history(platform, "first")["rounds"]] == [0, 1, 2, 3, 4]
        assert model(platform).tolist() == [7.0], "without an initial model a run begins with the newest"
        status = platform.status("COORDINATOR_OPS_PORT")
        assert (status["state"], status["round"], status["rounds"]) == ("complete", 7, 7)
        assert [round["round"] for round in status["last_rounds"]] == [5, 6]
        metrics = platform.get("COORDINATOR_OPS_PORT", "/metrics").decode()
        assert f'fedround_run_info{{run="second",run_id="{status["run"]["id"]}"}} 1.0' in metrics
        assert 'fedround_run_info{run="second"' in platform.get("AGGREGATOR_OPS_PORT", "/metrics").decode()
    for taken in ("first", first["id"]):
        done = fedround("platform", COORDINATOR_RUN_NAME=taken, **kept_in(tmp_path))
        assert done.returncode == 78
        assert f"COORDINATOR_RUN_NAME: run {taken[:8]} has ended: choose a name that no run has had" in done.stderr


def test_a_new_run_starts_with_the_initial_model(tmp_path: Path) -> None:
    np.save(tmp_path / "initial.npy", np.array([100.0, 100.0]))
    with trained(tmp_path, COORDINATOR_RUN_NAME="first"):
        pass
    initial = str(tmp_path / "initial.npy")
    with trained(tmp_path, COORDINATOR_RUN_NAME="second", AGGREGATOR_INITIAL_MODEL=initial) as platform:
        assert model(platform).tolist() == [103.0, 103.0], "even of another shape"
    # After a restart, training continues from the newest model.
    with trained(tmp_path, rounds=4, COORDINATOR_RUN_NAME="second", AGGREGATOR_INITIAL_MODEL=initial) as platform:
        assert model(platform).tolist() == [104.0, 104.0]


def test_a_killed_platform_continues_its_run(tmp_path: Path) -> None:
    settings = kept_in(tmp_path) | {"COORDINATOR_ROUNDS": "0", "COORDINATOR_RUN_NAME": "killed"}
    # With one name the second participant replaces the first. The default name depends on other participants of this host.
    name = {"PARTICIPANT_NAME": "anna"}
    with running("platform", **settings) as platform, running("participant", **name, **silo(platform, seconds=0.2)):
        until(lambda: len(history(platform)["rounds"]) >= 3)
        run = history(platform)["run"]["id"]
        platform.kill()
    with running("platform", **settings) as platform, running("participant", **name, **silo(platform)):
        until(lambda: len(history(platform)["rounds"]) >= 6)
        found = history(platform)
        assert found["run"]["id"] == run
        numbers = [round["round"] for round in found["rounds"]]
        assert numbers == sorted(set(numbers))


def test_the_round_configuration_reaches_training_code_and_the_history(tmp_path: Path) -> None:
    config = '{"step": {"0": 1, "2": 10}, "loss": "mse"}'
    with trained(tmp_path, COORDINATOR_ROUND_CONFIG=config) as platform:
        found = history(platform)
        assert found["run"]["plan"]["config"] == {"step": {"0": 1, "2": 10}, "loss": "mse"}
        assert [round["metrics"]["step"] for round in found["rounds"]] == [1, 1, 10]
        assert [round["metrics"]["rounds"] for round in found["rounds"]] == [3, 3, 3]
        assert platform.status("COORDINATOR_OPS_PORT")["config"] == {"step": 10, "loss": "mse"}
        assert model(platform).tolist() == [12.0]
    # Only the coordinator was restarted with another one; the schedule counts from the run's first round.
    with trained(tmp_path, COORDINATOR_ROUND_CONFIG=config, COORDINATOR_RUN_NAME="second") as platform:
        assert [round["metrics"]["step"] for round in history(platform)["rounds"]] == [1, 1, 10]


def test_runs_and_their_rounds_can_be_exported(tmp_path: Path) -> None:
    with trained(tmp_path, COORDINATOR_RUN_NAME="first") as platform:
        digest = platform.get("AGGREGATOR_OPS_PORT", "/model")
        url = ["--from", platform.url("COORDINATOR_OPS_PORT")]
        until(lambda: "digest" in history(platform)["rounds"][-1])
        listed = fedround("runs", *url)
        assert (listed.returncode, listed.stderr) == (0, "")
        header, row = listed.stdout.splitlines()
        assert header.split() == ["run", "rounds", "started", "ended", "strategy", "state"]
        assert row.split()[:2] == ["first", "3"]
        assert row.split()[-2:] == ["weighted_average", "complete"]
        for name in ("x.csv", "x.json"):
            done = fedround("history", *url, "--run", "first", "-o", str(tmp_path / name))
            assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path / name}: 3 rounds of run first\n")
        rounds: list[Mapping[str, Any]] = json.loads((tmp_path / "x.json").read_text())["rounds"]
        with (tmp_path / "x.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert [line["round"] for line in lines] == ["0", "1", "2"]
        assert lines[2]["metric_step"] == "1.0"
        assert lines[2]["participants"] == rounds[2]["participants"][0]["name"]
        assert lines[2]["digest"] == rounds[2]["digest"]
        assert len(digest) > 0
        missing = fedround("history", *url, "--run", "nobody", "-o", str(tmp_path / "y.csv"))
        assert missing.returncode == 1
        assert "no run has this name or id" in missing.stderr
        wrong = fedround("history", *url, "-o", str(tmp_path / "y.txt"))
        assert "must end in .csv or .json" in wrong.stderr
        elsewhere = fedround("runs", "--from", platform.url("AGGREGATOR_OPS_PORT"))
        assert elsewhere.returncode == 1
        assert "is this the coordinator's ops port" in elsewhere.stderr


LARGE = 5_000
"""Number of rounds of a long run."""


def long_run(tmp_path: Path, *, every: int = 1) -> Run:
    """Write a run of 20 MB to the coordinator's directory: `LARGE` rounds of ten silos, each `every`th with an evaluation."""
    directory = tmp_path / "coordinator"
    directory.mkdir(mode=0o700)
    run = Run(str(uuid4()), "long", 1000, 1.0)
    silos = [{"name": f"silo-{n}", "samples": 100, "seconds": 0.25, "metrics": {"loss": 0.5, "note": n}} for n in range(10)]
    with closing(Archive(directory)) as archive, archive.writing():
        archive.save_run(run, {"plan": {"evaluate_every": every}, "version": "0", "strategy": "fedadam"})
        for n in range(LARGE):
            known = {"ended": 1.0, "seconds": 0.5, "metrics": {"loss": 1 / (n + 1)}, "participants": silos * 5}
            if (n + 1) % every == 0:
                known["evaluation"] = {"metrics": {"accuracy": n / LARGE}, "participants": silos}
            archive.add(run, run.first + n, known)
        archive.end(run, 2.0, "complete")
    return run


def test_a_long_history_is_exported_in_little_memory(tmp_path: Path) -> None:
    long_run(tmp_path)
    with running("platform", **kept_in(tmp_path)) as platform:
        before = peak(platform.pid)
        for name in ("x.csv", "x.json"):
            done = fedround("history", "--from", platform.url("COORDINATOR_OPS_PORT"), "--run", "long", "-o", str(tmp_path / name))
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"{tmp_path / name}: {LARGE} rounds of run long\n"
        assert peak(platform.pid) - before < 20
    with (tmp_path / "x.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["round"]) for line in lines] == [*range(1000, 1000 + LARGE)]
    assert lines[-1]["evaluation_accuracy"] == str((LARGE - 1) / LARGE)
    rounds = json.loads((tmp_path / "x.json").read_text())["rounds"]
    assert (len(rounds), len(rounds[-1]["participants"])) == (LARGE, 50)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"run": {"name": "a"}, "rounds": [\n{"round": 0},\n', id="a part"),
        pytest.param(b'{"run": {"name": "a"}, "rounds": [{"round": 0}]}', id="that of 0.1.0"),
        pytest.param(b'{"run": {}, "rounds": [\n\n]}\n', id="a run without a name"),
        pytest.param(b"[]", id="other JSON"),
    ],
)
def test_a_response_that_is_no_history_is_not_written_to_a_file(body: bytes, tmp_path: Path) -> None:
    class History(Handler):
        def take(self) -> None:
            self.answer(body)

    with Server(History) as server:
        done = fedround("history", "--from", server.url, "-o", str(tmp_path / "x.json"))
    assert done.returncode == 1
    assert "the response is not a complete history in the format of this version" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_the_points_of_a_curve_are_few_and_evenly_spaced(tmp_path: Path) -> None:
    run = long_run(tmp_path, every=7)
    with running("platform", **kept_in(tmp_path)) as platform:
        found = json.loads(platform.get("COORDINATOR_OPS_PORT", f"/history?run={run.id}&points=400"))
        numbers = [round["round"] - run.first + 1 for round in found["rounds"]]
        assert numbers == [*range(14, LARGE, 14), LARGE], "the last round is always one"
        assert all("accuracy" in round["evaluation"]["metrics"] for round in found["rounds"][:-1]), "those with an evaluation"
        assert not any("participants" in round or "participants" in round.get("evaluation", {}) for round in found["rounds"])
        assert len(json.loads(platform.get("COORDINATOR_OPS_PORT", f"/history?run={run.id}&points=0"))["rounds"]) == LARGE
        for wrong in ("-1", "x", "1.5", "1" * 5000):
            with pytest.raises(HTTPError, match="400"):
                platform.get("COORDINATOR_OPS_PORT", f"/history?points={wrong}")


def test_a_curve_of_many_points_needs_little_memory(tmp_path: Path) -> None:
    long_run(tmp_path)
    with running("platform", **kept_in(tmp_path)) as platform:
        before = peak(platform.pid)
        found = json.loads(platform.get("COORDINATOR_OPS_PORT", f"/history?run=long&points={LARGE}"))
        assert peak(platform.pid) - before < 20
    assert len(found["rounds"]) == LARGE


def test_no_other_user_can_read_the_history(tmp_path: Path) -> None:
    directory = tmp_path / "coordinator"
    directory.mkdir(mode=0o755)  # not by the service, which would close it
    with trained(tmp_path):
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert modes.keys() >= {"history.sqlite", "history.sqlite-wal", "rounds.json"}
    assert set(modes.values()) == {0o600}


def test_an_invalid_or_newer_archive_is_not_changed(tmp_path: Path) -> None:
    with trained(tmp_path):
        pass
    file = tmp_path / "coordinator" / "history.sqlite"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version = 9")
    for content, complaint in ((file.read_bytes(), "it has format 9"), (b"nonsense" * 1000, "it is not an SQLite database")):
        file.write_bytes(content)
        done = fedround("platform", **kept_in(tmp_path))
        assert complaint in done.stderr
        assert done.returncode == 78
        assert file.read_bytes() == content


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_every_log_line_names_the_run(isolation: str, tmp_path: Path) -> None:
    settings = kept_in(tmp_path) | {"COORDINATOR_ROUNDS": "2", "COORDINATOR_RUN_NAME": "named"}
    with running("platform", **settings) as platform:
        with running("participant", PARTICIPANT_ISOLATION=isolation, **silo(platform)) as participant:
            assert participant.wait() == 0
            lines = [json.loads(line) for line in participant.log.splitlines() if '"round 1' in line or "step=" in line]
            assert len(lines) >= 3
            assert {line["run"] for line in lines} == {"named"}
            assert {line["run_id"] for line in lines} == {history(platform)["run"]["id"]}
        assert platform.end() == 0
        assert all(json.loads(line)["run"] == "named" for line in platform.log.splitlines() if "completed in" in line)


def test_participants_on_one_host_have_different_names() -> None:
    with running("platform", COORDINATOR_MIN_CLIENTS="9") as platform:
        own = silo(platform)
        with running("participant", **own), running("participant", **own), running("participant", PARTICIPANT_NAME="mine", **own):

            def names() -> list[str]:
                return sorted(p["name"] for p in platform.status("COORDINATOR_OPS_PORT")["participants"])

            until(lambda: len(set(names())) == 3)
            assert "mine" in names()
