"""Participants that hang, fail and die: the coordinator shows each of them by name."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

from support.processes import Process, joining, running, until
from support.tools import tool

PREFIX = "fedround_coordinator_participant_"
WITHIN = 60.0


def silo(platform: Process, name: str, kind: str, **options: str) -> dict[str, str]:
    """The settings of a participant with this name. It is killed soon if its training does not end."""
    return joining(
        platform,
        f"silos:{kind}",
        options,
        PARTICIPANT_NAME=name,
        PARTICIPANT_CANCEL_TIMEOUT="200ms",
        PARTICIPANT_MAX_FAILURES="1000",
        PARTICIPANT_HEARTBEAT_PERIOD="200ms",
    )


def test_hanging_failing_and_killed_participants_are_found_by_name(tmp_path: Path) -> None:
    never = tmp_path / "never"
    os.mkfifo(never)
    plan = {
        "COORDINATOR_ROUNDS": "0",
        "COORDINATOR_ROUND_TIMEOUT": "3s",
        "COORDINATOR_HEARTBEAT_TIMEOUT": "2s",
    }
    with ExitStack() as stack:
        platform = stack.enter_context(running("platform", **plan))

        def scraped() -> Mapping[tuple[str, ...], float]:
            """Return the samples by name and labels."""
            text = platform.get("COORDINATOR_OPS_PORT", "/metrics").decode()
            return {
                (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
                for family in parse(text)
                for sample in family.samples
                if sample.name.startswith(PREFIX)
            }

        def seen(*condition: object, at_least: float = 1) -> Callable[[], bool]:
            return lambda: scraped().get(tuple(map(str, condition)), -1) >= at_least

        def explained(name: str, phase: str) -> str:
            """Wait for the last failure of a participant in the status, and return its reason."""
            found: list[str] = []

            def look() -> bool:
                last = [p["last_failure"] for p in platform.status("COORDINATOR_OPS_PORT")["participants"] if p["name"] == name]
                found[:] = [f"{f['reason']}: {f['detail']}" for f in last if f and f["phase"] == phase and f["seconds"] >= 0]
                return bool(found)

            until(look, within=WITHIN)
            return found[0]

        start: Callable[..., Process] = lambda name, kind, **options: stack.enter_context(  # noqa: E731
            running("participant", **silo(platform, name, kind, **options))
        )
        start("well", "Plus1")
        start("hangs", "Plus1", gate=str(never))
        until(seen("phase", "hangs", "training"), within=WITHIN)
        until(seen("missed_deadlines", "hangs", at_least=1), within=WITHIN)
        assert explained("hangs", "training") == "deadline: "

        dies = start("dies", "Plus1", gate=str(never))
        until(seen("phase", "dies", "training"), within=WITHIN)
        dies.kill()
        lines = [json.loads(line) for line in dies.log.splitlines()]
        assert {(line["service"], line["participant"]) for line in lines} == {("fedround-participant", "dies")}
        until(seen("phase", "dies", "missing"), within=WITHIN)
        until(seen("failures_total", "dies", "silent"), within=WITHIN)

        start("fails", "Failing")
        until(seen("failures_total", "fails", "failed", at_least=2), within=WITHIN)
        until(seen("consecutive_failures", "fails", "failed", at_least=2), within=WITHIN)
        until(seen("missed_deadlines", "hangs", at_least=2), within=WITHIN)
        until(seen("phase", "hangs", "resting"), within=WITHIN)

        now = scraped()
        assert {name: now["up", name] for name in ("well", "hangs", "dies")} == {"well": 1, "hangs": 1, "dies": 0}
        assert now["rounds_counted_total", "well"] > 0
        assert (now["missed_deadlines", "well"], now["failures_total", "well", "deadline"]) == (0, 0)
        assert ("last_counted_round", "hangs") not in now
        assert now["last_contact_timestamp_seconds", "hangs"] > now["last_contact_timestamp_seconds", "dies"]
        failures = {f["name"]: f["reason"] for f in platform.status("COORDINATOR_OPS_PORT")["failures"]}
        assert failures["fails"].startswith("train failed in round")
        assert failures["fails"].endswith("RuntimeError: no data today")

        body = platform.get("COORDINATOR_OPS_PORT", "/metrics")
        done = subprocess.run([tool("promtool"), "check", "metrics"], input=body, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")
