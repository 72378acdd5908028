"""The page in a real browser: live, in light and dark, on a telephone, by keyboard, with thousands of participants, with faults."""

import http.client
import json
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.browser import Browser, browser, says, violations
from support.link import Proxy
from support.npm import package
from support.peer import answer
from support.processes import Process, joining, kept_in, running, two_services, until

pytestmark = pytest.mark.timeout(180)

WITHIN = 30.0
"""Maximum seconds from a fault until the page shows it."""
WEIGHTS = 150_000
"""More than an aggregator receives in memory, so it uses its spool."""
TAB, SPACE = "\ue004", " "
CURVES = "return document.querySelectorAll('.plot:not([hidden]) polyline[points]').length"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as window:
        yield window


@pytest.fixture(scope="module")
def axe() -> str:
    return (package("axe-core@4.14.1") / "axe.min.js").read_text()


def shown(window: Browser, url: str) -> None:
    """Open the page, wait for its first event, and mark it. A reload would remove the mark."""
    window.looks()
    window.open(url)
    until(lambda: window.text("#facts") != "", 10)
    window.run("window.mark = true")


def ops(platform: Process) -> str:
    return platform.url("COORDINATOR_OPS_PORT")


def silo(platform: Process, name: str, mood: Path, size: int = 5, **options: float) -> dict[str, str]:
    mood.touch()
    return joining(platform, "moody:Moody", {"size": size, "mood": str(mood), **options}, PARTICIPANT_NAME=name)


def completed(platform: Process) -> int:
    number: int = platform.status("COORDINATOR_OPS_PORT")["round"]
    return number


def test_the_page_follows_training_across_a_restart_of_the_coordinator(window: Browser, tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "0"} | kept_in(tmp_path)
    with running("platform", **settings) as platform:
        shown(window, ops(platform))
        assert "No participant has joined" in window.text("#participants")
        assert "No round has completed yet." in window.text("#rounds")
        assert "waiting for participants" in window.text("#state")
        with running("participant", **silo(platform, "anna", tmp_path / "mood")):
            until(says(window, "#state", "training"), 20)
            until(says(window, "#participants", "anna"), 20)
            until(lambda: window.run("return document.querySelectorAll('#rounds tbody tr').length") >= 3, 20)
            until(lambda: window.run(CURVES) == 2, 20)
            assert "of 1 updates counted" in window.text("#progress"), "a bar, without an end of training too"
            for choice, names in (("metrics", ["loss"]), ("weights", ["mean", "stddev", "min", "max", "l2_norm"])):
                assert window.run("return [...document.getElementById(arguments[0]).options].map(o => o.value)", choice) == names
            platform.kill()
            until(says(window, "#state", "no contact"), WITHIN)
            rounds = window.text("#rounds")
            with running("platform", **settings, **platform.ports):
                until(says(window, "#state", "training"), WITHIN)
                until(lambda: window.text("#rounds") != rounds, 20)
    assert window.run("return window.mark"), "it was never reloaded"


def test_after_a_restart_a_new_page_shows_the_earlier_rounds(window: Browser, tmp_path: Path) -> None:
    kept = {"COORDINATOR_ROUNDS": "3"} | kept_in(tmp_path)
    with running("platform", **kept) as platform, running("participant", **silo(platform, "anna", tmp_path / "mood")) as anna:
        assert anna.wait() == 0
    with running("platform", **kept) as platform:
        shown(window, ops(platform))
        assert window.run("return document.querySelectorAll('#rounds tbody tr').length") == 3
        assert window.run(CURVES) == 2
    del kept["COORDINATOR_DATA_DIR"]
    with running("platform", **kept | {"COORDINATOR_ROUNDS": "9"}) as platform:
        shown(window, ops(platform))
        until(says(window, "#training", "3 of 9"), 10)
        assert "No round has completed since the coordinator started." in window.text("#rounds")
        assert "No participant has joined since the coordinator started." in window.text("#participants")
        with running("participant", **silo(platform, "anna", tmp_path / "mood")) as anna:
            until(says(window, "#participants", "anna"), 20)
            anna.end()
        until(says(window, "#participants", "All participants have left."), 20)


def test_the_curves_of_an_earlier_run_can_be_overlaid(window: Browser, axe: str, tmp_path: Path) -> None:
    kept = {"COORDINATOR_ROUNDS": "60"} | kept_in(tmp_path)
    points = "return [...document.querySelectorAll('#metrics-curve polyline')].map(l => l.getAttribute('points') || '')"

    def drawn() -> list[int]:
        return [len(line.split()) for line in window.run(points)]

    for name in ("first", "second"):
        with running("platform", **kept, COORDINATOR_RUN_NAME=name) as platform:
            with running("participant", **silo(platform, "anna", tmp_path / "mood")) as anna:
                assert anna.wait() == 0
            shown(window, ops(platform))
            assert window.text("#run") == f"run {name}"
            until(says(window, "#training", "60 of 60"), 10)
            until(lambda: drawn() == [0, 60], 10)  # also those that the status no longer has
            if name == "first":
                assert window.run("return document.getElementById('compare').hidden"), "there is none to compare with"
                continue
            until(lambda: window.run("return document.getElementById('other').options.length") == 2, 10)
            window.run("const o = document.getElementById('other'); o.selectedIndex = 1; o.dispatchEvent(new Event('change'))")
            until(lambda: drawn() == [60, 60], 10)
            assert "dashed: run first" in window.text("#metrics-curve")
            assert "; run first from " in window.run(
                "return document.querySelector('#metrics-curve svg').getAttribute('aria-label')"
            )
            assert violations(window, axe) == []


def test_faults_are_shown_within_30_seconds(window: Browser, axe: str, tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "0", "COORDINATOR_MIN_CLIENTS": "2", "AGGREGATOR_DATA_DIR": str(tmp_path / "models")}
    with (
        two_services(**settings) as (coordinator, aggregator),
        running("participant", **silo(coordinator, "one", tmp_path / "one", WEIGHTS)),
        running("participant", **silo(coordinator, "two", tmp_path / "two", WEIGHTS)),
        running("participant", **silo(coordinator, "three", tmp_path / "three", WEIGHTS)) as three,
    ):
        shown(window, ops(coordinator))
        until(says(window, "#participants", "three"), 20)
        took = {}

        (tmp_path / "one").write_text("nan")
        took["NaN"] = until(says(window, "#warnings", "NaN in"), WITHIN)
        (tmp_path / "one").write_text("")

        three.send(signal.SIGSTOP)
        took["paused, late"] = until(lambda: window.run("return document.querySelector('#participants .late')") is not None, WITHIN)
        took["paused, missing"] = until(says(window, "#participants tbody tr", "missing"), WITHIN)
        assert window.text("#participants tbody th") == "three", "whom to look for comes first"
        assert "gone for" in window.text("#participants .number.late")
        assert "timed out" in window.text("#warnings")
        assert violations(window, axe) == [], "missing"
        three.send(signal.SIGCONT)
        until(lambda: "missing" not in window.text("#participants"), WITHIN)

        resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        took["full spool"] = until(says(window, "#reasons", "aggregator: the spool directory cannot be written"), WITHIN)
        assert violations(window, axe) == [], "not ready"
        resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: window.text("#reasons") == "", WITHIN)

        aggregator.kill()
        took["aggregator killed"] = until(says(window, "#reasons", "no contact with the aggregator"), WITHIN)
        coordinator.send(signal.SIGSTOP)
        took["coordinator paused"] = until(says(window, "#state", "no contact"), WITHIN)
        coordinator.send(signal.SIGCONT)
        until(says(window, "#state", "waiting for the aggregator"), WITHIN)
        coordinator.kill()
        took["coordinator killed"] = until(says(window, "#state", "no contact"), WITHIN)
    print("\n" + ", ".join(f"{fault}: {seconds:.1f} s" for fault, seconds in took.items()))
    assert max(took.values()) < WITHIN
    assert window.run("return window.mark"), "it was never reloaded"


def test_behind_a_proxy_the_page_waits_for_an_unreachable_coordinator(window: Browser) -> None:
    with running("platform") as platform, Proxy(int(platform.ports["COORDINATOR_OPS_PORT"])) as proxy:
        shown(window, proxy.url)
        proxy.answer = answer("502 Bad Gateway", b"<h1>502 Bad Gateway</h1>", Content_Type="text/html")
        proxy.cut()
        until(lambda: proxy.answered >= 5, WITHIN)
        assert "no contact" in window.text("#state")
        proxy.answer = None
        until(says(window, "#state", "waiting for participants"), WITHIN)
    assert window.run("return window.mark"), "it was never reloaded"


def test_beyond_the_limit_a_page_waits_until_another_is_closed(window: Browser, axe: str) -> None:
    with running("platform") as platform, ExitStack() as others:
        for _ in range(50):
            others.enter_context(platform.open("COORDINATOR_OPS_PORT", "/events"))
        window.looks()
        window.open(ops(platform))
        window.run("window.mark = true")
        until(says(window, "#state", "too many pages are open"), 10)
        assert "Waiting for the coordinator's status" in window.text("body")
        assert violations(window, axe) == [], "loading"
        others.close()
        until(says(window, "#state", "waiting for participants"), WITHIN)
    assert window.run("return window.mark"), "it was never reloaded"


def test_after_a_change_of_the_token_the_page_asks_for_it_again(window: Browser) -> None:
    with running("platform", COORDINATOR_OPS_TOKEN="one") as platform:
        shown(window, ops(platform).replace("//", "//me:one@"))
    with running("platform", COORDINATOR_OPS_TOKEN="two", **platform.ports) as platform:
        until(lambda: window.run("return window.mark") is None, WITHIN)
        shown(window, ops(platform).replace("//", "//me:two@"))


def test_updates_do_not_move_what_the_user_reads(window: Browser, tmp_path: Path) -> None:
    with (
        running("platform", COORDINATOR_ROUNDS="0") as platform,
        running("participant", **silo(platform, "anna", tmp_path / "mood")),
    ):
        shown(window, ops(platform))
        until(lambda: window.run("return document.querySelectorAll('#rounds tbody tr').length") >= 2, 20)
        window.run(
            """
            window.row = document.querySelector('#rounds tbody tr')
            getSelection().setBaseAndExtent(document.querySelector('#participants tbody th'), 0, row.cells[2], 1)
            window.selected = getSelection().toString()
            """
        )
        before = window.run("return selected")
        number = int(window.run("return row.cells[0].textContent"))
        until(lambda: int(window.text("#rounds tbody th")) >= number + 5, 20)
        assert before.startswith("anna\t")
        after = window.run("return getSelection().toString()")
        assert (after.splitlines()[0].split("\t")[0], after.splitlines()[-1]) == ("anna", before.splitlines()[-1])
        assert window.run("return row.isConnected && row.cells[0].textContent") == f"{number}"


def test_the_page_can_be_paused_and_continued_by_keyboard(window: Browser, axe: str, tmp_path: Path) -> None:
    pressed = "return document.activeElement.getAttribute('aria-pressed')"
    with (
        running("platform", COORDINATOR_ROUNDS="0") as platform,
        running("participant", **silo(platform, "anna", tmp_path / "mood")),
    ):
        shown(window, ops(platform))
        until(says(window, "#rounds", "0.5"), 20)
        window.press(TAB)
        assert window.run(pressed) == "false"
        assert window.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"
        window.press(SPACE)
        assert window.run(pressed) == "true"
        assert "paused; data from" in window.text("#state")
        text, number = window.text("main"), completed(platform)
        until(lambda: completed(platform) > number + 5)
        assert window.text("main") == text
        for scheme in ("light", "dark"):
            window.looks(scheme=scheme)
            assert violations(window, axe) == [], "paused"
        window.press(SPACE)
        assert window.run(pressed) == "false"
        assert "paused" not in window.text("#state")
        assert window.text("main") != text


def test_the_page_shows_by_name_how_often_each_participant_was_counted_and_late(window: Browser, tmp_path: Path) -> None:
    plan = {"COORDINATOR_ROUNDS": "0", "COORDINATOR_QUORUM": "2"}
    with running("platform", **plan) as platform, ExitStack() as silos:
        shown(window, ops(platform))
        for name, seconds in {"slow": 1.0, "silo-10": 0.1, "silo-9": 0.1}.items():
            silos.enter_context(running("participant", **silo(platform, name, tmp_path / "mood", seconds=seconds)))
            until(says(window, "#participants", name), WITHIN)
        until(says(window, "#rounds thead", "late"), 20)
        heads = window.run("return [...document.querySelectorAll('#participants thead th')].map(cell => cell.textContent)")
        assert heads[-1] == "rounds counted"
        rows = (
            "return Object.fromEntries([...document.querySelectorAll('#participants tbody tr')]"
            ".map(row => [row.firstChild.textContent, row.lastChild.textContent]))"
        )
        names = window.run("return [...document.querySelectorAll('#participants tbody th')].map(cell => cell.textContent)")
        assert names == ["silo-9", "silo-10", "slow"]
        assert all(re.fullmatch(r"\d+ of \d+|–", share) for share in window.run(rows).values())
        until(lambda: re.fullmatch(r"\d+ of \d+", window.run(rows)["slow"]), WITHIN)


def test_the_page_shows_which_shards_are_trained_and_by_which_participant(window: Browser, tmp_path: Path) -> None:
    fits = "const it = document.querySelector('#participants .scroll'); return it.scrollWidth <= it.clientWidth && it.innerText"
    with running("platform", COORDINATOR_ROUNDS="0") as platform, ExitStack() as silos:
        shown(window, ops(platform))
        window.looks(width=1200)
        for name, shard in {"anna": "0/3", "bert": "2/3"}.items():
            one = silo(platform, name, tmp_path / "mood", seconds=5)
            silos.enter_context(running("participant", **one, PARTICIPANT_SHARD=shard))
        until(lambda: "training for" in (window.run(fits) or ""), WITHIN)
        until(says(window, "#participants", "2/3"), 20)
        until(says(window, "#reasons", "no participant holds shard 1 of 3"), WITHIN)
        silos.enter_context(running("participant", **silo(platform, "carl", tmp_path / "mood"), PARTICIPANT_SHARDS="3"))
        until(says(window, "#participants", "1/3"), 20)
        until(lambda: "shard" not in window.text("#reasons"), WITHIN)


def test_the_page_shows_the_phase_and_last_failure_of_each_participant(window: Browser, tmp_path: Path) -> None:
    plan = {"COORDINATOR_ROUNDS": "0", "COORDINATOR_ROUND_TIMEOUT": "4s"}
    with running("platform", **plan) as platform, running("participant", **silo(platform, "hangs", tmp_path / "mood", seconds=60)):
        shown(window, ops(platform))
        until(lambda: re.search(r"training for \d+ s", window.text("#participants")), WITHIN)
        until(says(window, "#participants thead", "last failure"), WITHIN)
        assert re.search(r"round 0; deadline; training, \d s after selection; \d+ s ago", window.text("#participants tbody .text"))


def test_thousands_of_participants_cost_little_and_can_be_filtered(window: Browser, axe: str) -> None:
    count = 3000
    many = {"COORDINATOR_MIN_CLIENTS": f"{count}", "COORDINATOR_SHARED_SEATS": f"{count}", "COORDINATOR_HEARTBEAT_TIMEOUT": "600"}
    with running("platform", **many) as platform:
        for first in range(0, count, 500):  # of one address no more than 1,000 register at once
            source = f"127.0.1.{1 + first // 500}", 0
            connection = http.client.HTTPConnection("127.0.0.1", int(platform.ports["COORDINATOR_PORT"]), source_address=source)
            for number in range(first, first + 500):
                connection.request("GET", "/rendez_vous", headers={"Fedround-Participant": f"silo-{number}"})
                connection.request("GET", f"/heartbeat/{json.load(connection.getresponse())['id']}")
                connection.getresponse().read()
            connection.close()
        shown(window, ops(platform))
        until(says(window, "#facts", "3,000"), 20)
        assert "and 2,800 more" in window.text("#participants")
        took = window.run(
            """
            return [1, 2, 3, 4, 5, 6, 7].map(seconds_since_contact => {
                const participants = now.participants.map(p => ({ ...p, seconds_since_contact }))
                const data = JSON.stringify({ ...now, participants })
                const began = performance.now()
                heard({ data })
                document.body.getBoundingClientRect()  // which has to be laid out for that
                return performance.now() - began
            })
            """
        )
        print(f"\nan update with {count} participants: {min(took):.1f} ms")
        assert min(took) < 50
        window.run("document.getElementById('filter').focus()")
        for key in "silo-2999":
            window.press(key)
        assert window.run("return document.querySelectorAll('#participants tbody tr').length") == 1
        assert window.text("#participants tbody th") == "silo-2999"
        assert violations(window, axe) == []
        window.press("x")
        assert "No participant has this name or state." in window.text("#participants")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_in_all_its_states(window: Browser, axe: str, tmp_path: Path, scheme: str) -> None:
    with running("platform", COORDINATOR_ROUNDS="8") as platform:
        shown(window, ops(platform))
        window.looks(scheme=scheme)
        assert violations(window, axe) == [], "empty"
        with running("participant", **silo(platform, "anna", tmp_path / "mood"), PARTICIPANT_AFTER_FINISH="wait"):
            until(lambda: window.run(CURVES) == 2, 20)
            assert violations(window, axe) == [], "training"
            until(says(window, "#state", "complete"), 20)
            assert violations(window, axe) == [], "finished"
        platform.kill()
        until(says(window, "#state", "no contact"), WITHIN)
        assert violations(window, axe) == [], "disconnected"


def test_the_page_fits_on_a_telephone(window: Browser, tmp_path: Path) -> None:
    with (
        running("platform", COORDINATOR_ROUNDS="0") as platform,
        running("participant", **silo(platform, "anna", tmp_path / "mood", figures=19)),
    ):
        shown(window, ops(platform))
        window.looks(width=360, height=740)
        until(lambda: window.run(CURVES) == 2, 20)
        assert window.run("return document.documentElement.scrollWidth") == 360
        heads = window.run("return [...document.querySelectorAll('#rounds thead th')].map(cell => cell.textContent)")
        assert heads[-20:] == ["loss", *(f"figure_{n}" for n in range(19))]


def test_metrics_may_have_the_names_of_columns(window: Browser, tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text("""
import fedround
import numpy as np

class Named(fedround.NumPyParticipant):
    def train_round(self, weights):
        fedround.current_round().report(**{name: 77.5 for name in ("round", "seconds", "samples", "__proto__", "<b>x")})
        return fedround.Update(4, np.ones(3))
""")
    code = {"PARTICIPANT_CLASS": "named:Named", "PYTHONPATH": str(tmp_path)}
    with running("platform", COORDINATOR_ROUNDS="3") as platform:
        with running("participant", PARTICIPANT_COORDINATOR_URL=platform.url("COORDINATOR_PORT"), **code) as participant:
            assert participant.wait() == 0
        shown(window, ops(platform))
        for _ in range(2):  # events after the first one
            received = window.run("return Number(now.received)")
            until(lambda: window.run("return Number(now.received)") > received, 10)  # noqa: B023
        rows = "return [...document.querySelectorAll('#rounds tr')].map(row => [...row.children].map(cell => cell.textContent))"
        head, first, *_ = window.run(rows)
        assert head == ["round", "seconds", "counted", "dropped", "samples", "round", "seconds", "samples", "__proto__", "<b>x"]
        assert (first[0], first[4]) == ("2", "4")
        assert first[5:] == ["77.50"] * 5
