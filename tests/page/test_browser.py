"""The page as people see it, in a real browser: live, in both colours, on a telephone, by a screen reader, and with faults."""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.browser import Browser, browser
from support.npm import package
from support.processes import Process, running, until

pytestmark = pytest.mark.timeout(180)

TESTS = str(Path(__file__).parent.parent)
WITHIN = 30.0
"""Seconds from a fault until the page shows it."""
WEIGHTS = 150_000
"""More than an aggregator receives in memory: its spool is used."""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as window:
        yield window


@pytest.fixture(scope="module")
def axe() -> str:
    return (package("axe-core@4.14.1") / "axe.min.js").read_text()


def shown(window: Browser, platform: Process) -> None:
    """Open the page, wait for its first event, and mark it: after a reload the mark would be gone."""
    window.looks()
    window.open(platform.url("COORDINATOR_OPS_PORT"))
    until(lambda: window.text("#facts") != "", 10)
    window.run("window.mark = true")


def says(window: Browser, selector: str, text: str) -> Callable[[], bool]:
    return lambda: text in window.text(selector)


def silo(platform: Process, name: str, mood: Path, size: int = 5) -> dict[str, str]:
    mood.touch()
    return {
        "PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"),
        "PARTICIPANT_CLASS": "support.moody:Moody",
        "PARTICIPANT_OPTIONS": json.dumps({"size": size, "mood": str(mood)}),
        "PARTICIPANT_NAME": name,
        "PYTHONPATH": TESTS,
    }


def test_the_page_follows_training_and_outlives_a_restart_of_the_coordinator(window: Browser, tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "0", "COORDINATOR_DATA_DIR": str(tmp_path / "c"), "AGGREGATOR_DATA_DIR": str(tmp_path / "a")}
    with running("platform", **settings) as platform:
        shown(window, platform)
        assert "Nobody has joined yet." in window.text("#participants")
        assert "waiting for participants" in window.text("#state")
        with running("participant", **silo(platform, "anna", tmp_path / "mood")):
            until(says(window, "#state", "training"), 20)
            until(says(window, "#participants", "anna"), 20)
            until(lambda: window.run("return document.querySelectorAll('#rounds tbody tr').length") >= 3, 20)
            assert "loss" in window.text("#curve-title")
            until(lambda: window.run("return document.querySelector('#weights-curve svg')") is not None, 20)
            assert window.run("return [...document.getElementById('weights').options].map(o => o.value)") == [
                "mean",
                "stddev",
                "min",
                "max",
                "l2_norm",
            ]
            platform.kill()
            until(says(window, "#state", "no contact"), WITHIN)
            rounds = window.text("#rounds")
            with running("platform", **settings, **platform.ports):
                until(says(window, "#state", "training"), WITHIN)
                until(lambda: window.text("#rounds") not in (rounds, "No round is completed yet."), 20)
    assert window.run("return window.mark"), "it was never reloaded"


def test_what_is_wrong_shows_within_30_seconds(window: Browser, tmp_path: Path) -> None:
    with (
        running("aggregator", AGGREGATOR_DATA_DIR=str(tmp_path / "models")) as aggregator,
        running(
            "coordinator",
            COORDINATOR_ROUNDS="0",
            COORDINATOR_MIN_CLIENTS="2",
            COORDINATOR_AGGREGATOR_URL=aggregator.url("AGGREGATOR_PORT"),
            COORDINATOR_AGGREGATOR_INTERNAL_URL=aggregator.url("AGGREGATOR_INTERNAL_PORT"),
        ) as coordinator,
        running("participant", **silo(coordinator, "one", tmp_path / "one", WEIGHTS)),
        running("participant", **silo(coordinator, "two", tmp_path / "two", WEIGHTS)),
        running("participant", **silo(coordinator, "three", tmp_path / "three", WEIGHTS)) as three,
    ):
        shown(window, coordinator)
        until(says(window, "#participants", "three"), 20)
        took = {}

        (tmp_path / "one").write_text("nan")
        took["NaN"] = until(says(window, "#warnings", "(refused)"), WITHIN)
        (tmp_path / "one").write_text("")

        three.send(signal.SIGSTOP)
        took["paused, late"] = until(lambda: window.run("return document.querySelector('#participants .late')") is not None, WITHIN)
        took["paused, gone"] = until(says(window, "#warnings", "is gone: silent"), WITHIN)
        three.send(signal.SIGCONT)

        resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        took["full spool"] = until(says(window, "#reasons", "aggregator: the spool directory cannot be written"), WITHIN)
        resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: window.text("#reasons") == "", WITHIN)

        aggregator.kill()
        took["aggregator killed"] = until(says(window, "#reasons", "no contact with the aggregator"), WITHIN)
        coordinator.kill()
        took["coordinator killed"] = until(says(window, "#state", "no contact"), WITHIN)
    print("\n" + ", ".join(f"{fault}: {seconds:.1f} s" for fault, seconds in took.items()))
    assert max(took.values()) < WITHIN


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it_in_each_of_its_states(window: Browser, axe: str, tmp_path: Path, scheme: str) -> None:
    def violations() -> list[str]:
        window.run(axe)
        found = window.run_async("const done = arguments[arguments.length - 1]; axe.run().then(done, done)")
        return [f"{v['id']}: {node['html']}" for v in found["violations"] for node in v["nodes"]]

    with running("platform", COORDINATOR_ROUNDS="8") as platform:
        shown(window, platform)
        window.looks(scheme=scheme)
        assert violations() == [], "empty"
        with running("participant", **silo(platform, "anna", tmp_path / "mood"), PARTICIPANT_AFTER_FINISH="wait"):
            until(lambda: window.run("return document.querySelector('#weights-curve svg')") is not None, 20)
            assert violations() == [], "training"
            until(says(window, "#state", "complete"), 20)
            assert violations() == [], "finished"
        platform.kill()
        until(says(window, "#state", "no contact"), WITHIN)
        assert violations() == [], "disconnected"


def test_it_fits_on_a_telephone(window: Browser, tmp_path: Path) -> None:
    with (
        running("platform", COORDINATOR_ROUNDS="0") as platform,
        running("participant", **silo(platform, "anna", tmp_path / "mood")),
    ):
        shown(window, platform)
        window.looks(width=360, height=740)
        until(lambda: window.run("return document.querySelector('#weights-curve svg')") is not None, 20)
        assert window.run("return document.documentElement.scrollWidth") == 360
