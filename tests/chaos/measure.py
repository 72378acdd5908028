"""`make faults`: measure how long recovery takes and what attacks cost, for the tables of docs/explanation/faults.md.

In the first table, only the last two columns are measured. The second table consists of the records of `tests/hostile`.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path[:1] = [str(Path(__file__).parent.parent)]

from chaos.faults import FAULTS, Fault, killed, paused, stopped  # noqa: E402 only now it can be found
from chaos.federation import TESTS, Federation  # noqa: E402

PAGE = TESTS.parent / "docs" / "explanation" / "faults.md"
BLOCK = r"(<!-- measured by tests/chaos/measure.py: {} -->\n)(.*?)(<!-- end -->)"
LASTS = 1.0
"""Seconds of each fault."""
HEAD = (
    "| attack | rounds/s before | during | after | memory at its peak, MB | slowest probe, s |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)
ATTACKS: Mapping[str, str] = {
    "attackers_at_the_internal_port_stop_no_training": "five attacks on the internal port, without the secret",
    "a_client_that_pipelines_and_never_reads_costs_no_memory": "pipelined requests whose responses the client does not read",
    "endless_request_heads_stop_no_training": "request headers that never end",
    "slow_bodies_stop_no_training": "request bodies that arrive byte by byte",
    "a_slow_endless_body_stops_no_training": "chunked bodies that arrive byte by byte and never end",
    "fast_endless_bodies_stop_no_training": "bodies without an end, at full speed",
    "floods_from_one_address_do_not_delay_the_rounds_of_others": "a flood of requests from one address",
    "a_known_participant_is_limited_too": "a flood of heartbeats of a registered participant",
    "more_idle_connections_than_descriptors_stop_no_training": "more idle connections than file descriptors",
    "a_flood_of_wrong_tokens_is_slowed_down_and_delays_no_round": "a flood of requests with a wrong token",
    "registrations_without_heartbeats_delay_no_round": "registrations without heartbeats",
    "no_participant_is_removed_by_registering_its_name": "registrations under the name of another participant",
    "invalid_updates_are_refused_and_their_participants_named": "nine participants with invalid or implausible updates",
    "a_participant_that_never_delivers_delays_fewer_and_fewer_rounds": "a participant that never uploads an update",
    "a_slow_upload_does_not_extend_the_deadline": "an upload that arrives byte by byte, of this size",
}
"""Description of each test of tests/hostile, for the second table. The test's parameter follows in parentheses."""


def faults() -> Mapping[str, Fault]:
    """Return the faults by their names in the table. Coordinator and aggregator are two services."""
    found: dict[str, Fault] = {name: fault for group in FAULTS for name, fault in group.items() if not name.startswith("service ")}
    for name, fault in {"killed": killed, "restarted": stopped, "paused": paused}.items():
        found[f"aggregator {name}"] = lambda f, _, fault=fault: fault(f.aggregator)  # type: ignore[misc]
        found[f"coordinator {name}"] = lambda f, _, fault=fault: fault(f.coordinator)  # type: ignore[misc]
    return found


def rows(page: str) -> Iterator[str]:
    """Yield the names of the faults in the first table."""
    for line in re.findall(BLOCK.format("recovery"), page, re.DOTALL)[0][1].splitlines()[2:]:
        yield line.split("|")[1].strip()


def recoveries(times: int, seed: int) -> dict[str, list[float]]:
    """Return the seconds of recovery from each fault, measured this many times, in a federation of two services."""
    took: dict[str, list[float]] = defaultdict(list)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as directory, Federation(Path(directory), chance, apart=True) as f:
        f.recovered()
        for name, fault in faults().items():
            for _ in range(times):
                with fault(f, chance):
                    threading.Event().wait(LASTS)
                took[name].append(f.recovered())
            print(f"{name:28}{statistics.median(took[name]):6.1f}{max(took[name]):6.1f}", flush=True)
    return took


def attacks() -> list[dict[str, Any]]:
    """Run the attacks, and return their records."""
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "record"
        command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "tests/hostile", "-k", "not requests"]
        subprocess.run(command, cwd=TESTS.parent, env={**os.environ, "HOSTILE_RECORD": str(record)}, check=True)
        return [json.loads(line) for line in record.read_text().splitlines()]


def with_recoveries(page: str, took: Mapping[str, list[float]]) -> str:
    """Return the page with new values in the last two columns."""

    def row(match: re.Match[str]) -> str:
        cells = match[0].split("|")
        seconds = took.get(cells[1].strip())
        return (
            match[0]
            if seconds is None
            else "|".join([*cells[:-3], f" {statistics.median(seconds):.1f} ", f" {max(seconds):.1f} ", ""])
        )

    def block(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"^\|.*\|$", row, match[2], flags=re.MULTILINE) + match[3]

    return re.sub(BLOCK.format("recovery"), block, page, flags=re.DOTALL)


def _attack(test: str) -> str:
    """Return the description of a recorded attack."""
    name, _, parameter = test.partition("[")
    parameter = parameter.removesuffix("]").replace("-", " ", 1)
    return ATTACKS.get(name, name) + (f" (`{parameter}`)" if parameter else "")


def with_attacks(page: str, sieges: list[dict[str, Any]]) -> str:
    """Return the page with a new second table."""
    lines = [
        f"| {_attack(s['test'])} | {s['before']:.1f} | {s['during']:.1f} | {s['after']:.1f} | {s['peak_mb']:+.0f} | "
        f"{max(seconds for _, seconds in s['probes']):.2f} |\n"
        for s in sieges
    ]
    return re.sub(BLOCK.format("attacks"), lambda block: block[1] + HEAD + "".join(lines) + block[3], page, flags=re.DOTALL)


def main() -> int:
    """Measure, and write the page."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="number of measurements of each fault [default %(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="makes the same faults again [default %(default)s]")
    arguments = parser.parse_args()
    took, sieges = recoveries(arguments.times, arguments.seed), attacks()
    PAGE.write_text(with_attacks(with_recoveries(PAGE.read_text(), took), sieges))
    return 0


if __name__ == "__main__":
    sys.exit(main())
