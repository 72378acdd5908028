"""The image: its content, and its behaviour with least privilege."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.docker import BASE, IMAGE, build, built, copy_of_the_source, docker, inspect
from support.processes import until

HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65532", "--memory", "128m")
MB = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    return built()


def shell(script: str, *options: str) -> list[str]:
    return docker("run", "--rm", *options, "--entrypoint", "sh", IMAGE, "-c", script).split()


@contextmanager
def container(*arguments: str) -> Iterator[str]:
    """Run a container within the block, and yield its id."""
    id = docker("run", "--detach", *arguments).split()[-1]
    try:
        yield id
    finally:
        docker("rm", "--force", id)


def test_the_image_adds_at_most_110_mb_to_its_base() -> None:
    base, ours = (inspect(name)["Size"] / MB for name in (BASE, IMAGE))
    print(f"\n{ours:.0f} MB: {ours - base:.0f} more than {BASE}")
    assert ours - base <= 110


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert inspect(IMAGE)["Config"]["User"] == "65532:65532"
    assert inspect(IMAGE)["Config"]["Entrypoint"] == ["fedround"]


def test_only_tmp_and_volumes_are_writable() -> None:
    assert set(shell("find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null || true")) == {
        "/tmp",  # noqa: S108
        "/data",
        "/var/lib/fedround",
    }


def test_the_image_has_no_build_tools() -> None:
    assert shell("ls -d /root/.cache /build 2>/dev/null; command -v cc gcc make git; true") == []
    assert (
        shell("cd /opt/fedround; find . -name tests -o -name 'pip-*' -o -name 'hatchling-*'; ls bin | grep -x 'pip.*'; true") == []
    )


def test_only_needed_files_are_sent_to_the_builder(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE}\nCOPY . /context\n")
    build(Path(__file__).parent.parent.parent, "fedround-context:test", "--file", str(tmp_path / "Dockerfile"))
    found = docker("run", "--rm", "fedround-context:test", "find", "/context", "-type", "f").split()
    docker("rmi", "fedround-context:test")
    tops = {path.split("/")[2] for path in found}
    assert tops == {"pyproject.toml", "README.md", "LICENSE", "requirements", "service"}
    assert not [path for path in found if path.endswith(".pyc")]


def test_a_change_of_the_source_reuses_installed_dependencies(tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path)
    (source / "service" / "fedround" / "changed.py").write_text("CHANGED = True\n")
    said = build(source, "fedround-changed:test")
    docker("rmi", "fedround-changed:test")
    installs, _, wheel = said.partition("--requirement requirements/runtime.txt")
    assert installs
    assert wheel.split("\n", 3)[1].strip() == "---> Using cache"


def test_all_services_run_hardened_and_stop_immediately() -> None:
    for role in ("coordinator", "aggregator", "platform"):
        with container(*HARDENED, "--tmpfs", "/tmp", IMAGE, role) as id:  # noqa: S108
            until(lambda id=id: "AGGREGATOR_OPS_PORT: l" in docker("logs", id) or "COORDINATOR_OPS_PORT: l" in docker("logs", id))  # type: ignore[misc]
            docker("stop", id)
            assert inspect(id)["State"]["ExitCode"] == 0


def test_a_hardened_participant_trains_and_stops_within_its_drain_time_out() -> None:
    network = ("--network", "fedround-hardened")
    docker("network", "create", "fedround-hardened")
    try:
        plan = ("--env", "COORDINATOR_ROUNDS=0", "--env", "COORDINATOR_AGGREGATOR_URL=http://platform:8082")
        settings = {
            "PARTICIPANT_COORDINATOR_URL": "http://platform:8081",
            "PARTICIPANT_CLASS": "fedround.demo:HousePrices",
            "PARTICIPANT_OPTIONS": '{"epoch_seconds": 1.5}',
            "PARTICIPANT_DRAIN_TIMEOUT": "30s",
        }
        variables = [argument for name, value in settings.items() for argument in ("--env", f"{name}={value}")]
        with (
            container(*HARDENED, "--tmpfs", "/tmp", *network, "--name", "platform", *plan, IMAGE, "platform") as platform,  # noqa: S108
            container(*HARDENED, "--tmpfs", "/tmp", *network, *variables, IMAGE) as participant,  # noqa: S108
        ):
            until(lambda: "round 0: selected" in docker("logs", participant), 30)
            docker("stop", "--time", "40", participant)
            assert inspect(participant)["State"]["ExitCode"] == 0
            assert "round 0 completed" in docker("logs", participant)
            until(lambda: ") left" in docker("logs", platform))
    finally:
        docker("network", "rm", "fedround-hardened")


def test_a_class_that_cannot_be_imported_exits_with_78_and_the_reason() -> None:
    variables = ("--env", "PARTICIPANT_COORDINATOR_URL=http://nobody:8081", "--env", "PARTICIPANT_CLASS=no_such_module:Mine")
    with container(*HARDENED, *variables, IMAGE) as id:
        assert docker("wait", id).strip() == "78"
        assert "there is no module no_such_module" in docker("logs", id)
