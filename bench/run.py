"""`make bench`: compare fedround with the real xain-sdk 0.8.0 on the same platform. Writes Markdown to stdout."""

import os
import platform
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from bench.cases import Case, Results, cases  # noqa: E402 only now it can be found

PACKAGES = ("fedround", "httpx", "numpy", "prometheus-client", "opentelemetry-sdk", "starlette", "uvicorn", "uvloop")


def header() -> str:
    """Return the versions, the machine and the time."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unnamed CPU")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores of {cpu}, {ram:.0f} GB, Linux {platform.release()}, "
        f"load {os.getloadavg()[0]:.2f} before the start; Python {platform.python_version()}, "
        f"{', '.join(f'{package} {version(package)}' for package in PACKAGES)}. Medians, in parentheses the least and the largest."
    )


def measured(case: Case, repeat: int) -> Mapping[str, Sequence[Results]]:
    """Return the measurements of each variant. Variants take turns, so other load on the machine affects all of them."""
    found: dict[str, list[Results]] = {name: [] for name in case.variants}
    for turn in range(1, repeat + 1):
        for name, measure in case.variants.items():
            print(f"{case.title}: {name}, {turn} of {repeat}", file=sys.stderr)
            found[name].append(measure())
    return found


def table(found: Mapping[str, Sequence[Results]]) -> str:
    """Return a table with one column per variant."""
    rows = dict.fromkeys(row for results in found.values() for row in results[0])
    lines = [["", *found], ["---", *("---:" for _ in found)]]
    lines += [[row, *(spread([turn[row] for turn in results if row in turn]) for results in found.values())] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    least_and_largest = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
    return number(statistics.median(values)) + least_and_largest


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def main() -> None:
    """Run the selected cases."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything once and short, to see that it works")
    parser.add_argument("--repeat", type=int, default=5, help="how often each figure is taken [default %(default)s]")
    parser.add_argument("--only", metavar="CASE", help="one case instead of all")
    parser.add_argument("--model-mb", type=int, default=100, metavar="MB", help="the size of the large model [default %(default)s]")
    parser.add_argument("--participants", type=int, default=2, metavar="N", help="who train it, 2 or more [default %(default)s]")
    arguments = parser.parse_args()
    known = cases(arguments.quick, arguments.participants, arguments.model_mb)
    if arguments.only not in (None, *known):
        parser.error(f"the cases are {', '.join(known)}")
    print(header(), flush=True)
    for name, case in known.items():
        if arguments.only in (None, name):
            found = measured(case, 1 if arguments.quick else arguments.repeat)
            print(f"\n### {case.title}\n\n{case.note}\n\n{table(found)}", flush=True)


if __name__ == "__main__":
    main()
