"""`make fuzz`: feed every parser malformed input for some minutes.

`make test` runs the same targets for a moment. Each turn has its own seed, counted up from the first one. To repeat a failure,
start with the printed seed: it fails in the first turn.
"""

import itertools
import random
import re
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck

sys.path[:1] = [str(Path(__file__).parent.parent)]

from fuzz.targets import TARGETS, Feed, Target, served  # noqa: E402 only now it can be found

EXAMPLES = 300
"""Examples in a turn, which takes some seconds at most."""


def turn(target: Target, feed: Feed, seed: int) -> int:
    """Feed a target with inputs from a seed. Return their number. Raises the exception of the parser."""
    count = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(target.inputs)
    def fed(data: object) -> None:
        nonlocal count
        count += 1
        feed(data)

    fed()
    return count


def main() -> int:
    """Run for the requested time."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="for how long [default %(default)s]")
    parser.add_argument("--seed", type=int, default=None, help="of the first turn")
    parser.add_argument("--only", default="", help="only targets in whose name this is found (a regular expression)")
    arguments = parser.parse_args()
    first = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    end = time.monotonic() + 60 * arguments.minutes
    fed: Counter[str] = Counter()
    print(f"seed {first}, {arguments.minutes:g} minutes", flush=True)
    with served([target for target in TARGETS if re.search(arguments.only, target.name)]) as targets:
        for seed in itertools.count(first):
            for target, feed in targets:
                if time.monotonic() > end:
                    print("\n".join(f"{name:28}{count:9}" for name, count in fed.items()))
                    return 0
                try:
                    fed[target.name] += turn(target, feed, seed)
                except BaseException:
                    print(f"\n{target.name} failed; again with: make fuzz SEED={seed} ONLY='{target.name}'", file=sys.stderr)
                    raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
