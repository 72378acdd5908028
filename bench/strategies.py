"""`make strategies`: train two models with each strategy and FedProx, and write docs/explanation/strategies-compared.md.

Participants train on the real platform, in memory. Where a strategy has several options to choose from, the best ones are chosen
on a seed that the table does not have.
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from bench.silos import TASKS, Silo, Task

from fedround.aggregator.strategies import STRATEGIES
from fedround.testing import platform
from support import venvs

ROUNDS, TUNING_SEED, SEEDS = 30, 0, range(1, 6)
WRONG = -10
"""Factor by which the faulty silo multiplies its change of the model."""

PAGE = venvs.ROOT / "docs" / "explanation" / "strategies-compared.md"
BLOCK = re.compile(r"(<!-- made by make strategies -->\n).*(<!-- end of tables -->)", re.DOTALL)


class Setup(NamedTuple):
    """The configuration of a training."""

    strategy: str
    options: Mapping[str, Any] = {}
    mu: float = 0.0


ETAS = [{"eta": eta} for eta in (0.01, 0.03, 0.1, 0.3)]
TRIED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "fedavgm": [{"server_momentum": momentum} for momentum in (0.5, 0.7, 0.9)],
    "fedadagrad": ETAS,
    "fedadam": ETAS,
    "fedyogi": ETAS,
}
ROWS = {f"`{name}`": [Setup(name, options) for options in TRIED.get(name, [{}])] for name in STRATEGIES if name != "model_sum"}
ROWS["`weighted_average`, FedProx"] = [Setup("weighted_average", mu=mu) for mu in (0.01, 0.1, 1.0)]
"""Setups for each row. `model_sum` is missing: it is not meant for averaged weights."""


def train(task_name: str, setup: Setup, seed: int, wrong: bool = False, rounds: int = ROUNDS) -> list[float]:
    """Return the metric of each round's model on the held-out data of all silos. `wrong`: the largest silo is faulty."""
    task = TASKS[task_name]
    silos = [Silo(task, split, (seed, number), setup.mu) for number, split in enumerate(task.splits(seed))]
    if wrong:
        max(silos, key=lambda silo: len(silo.split.training.y)).factor = WRONG
    with platform(
        rounds=rounds,
        min_clients=len(silos),
        strategy=setup.strategy,
        strategy_options=setup.options,
        initial_model=task.initial(seed),
    ) as p:
        p.run(*silos, shards=len(silos))
    return [task.shown(completed.evaluation["quality"]) for completed in p.rounds]


def best(pool: Executor, task_name: str, setups: Sequence[Setup]) -> Setup:
    """Return the setup with the best final model."""
    if len(setups) == 1:
        return setups[0]
    curves = pool.map(partial(train, task_name, seed=TUNING_SEED), setups)
    return max(zip(setups, curves, strict=True), key=lambda tried: TASKS[task_name].sign * tried[1][-1])[0]


def row(pool: Executor, task_name: str, title: str) -> str:
    setup = best(pool, task_name, ROWS[title])
    right, wrong = (list(pool.map(partial(train, task_name, setup, wrong=wrong), SEEDS)) for wrong in (False, True))
    options = {**setup.options, **({"mu": setup.mu} if setup.mu else {})}
    cells = [
        title,
        f"`{json.dumps(options)}`" if options else "",
        spread([TASKS[task_name].rounds_to_mark(curve) for curve in right], ".0f"),
        *(spread([curve[-1] for curve in curves], ".3f") for curves in (right, wrong)),
    ]
    line = f"| {' | '.join(cells)} |\n"
    print(task_name, line, end="", file=sys.stderr, flush=True)
    return line


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, and in parentheses the minimum and the maximum."""
    middle, least, most = (number(value, form) for value in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def number(value: float, form: str) -> str:
    return "never" if value == math.inf else ">10" if form == ".3f" and value > 10 else format(value, form)


def header(task: Task) -> str:
    mark = f"rounds to {task.metric} {'≥' if task.sign > 0 else '≤'} {task.mark}"
    columns = ["strategy", "options", mark, f"{task.metric} after {ROUNDS} rounds", "the same, one silo wrong"]
    return f"**{task.title}**\n\n| {' | '.join(columns)} |\n| --- | --- | ---: | ---: | ---: |\n"


def main() -> None:
    with ProcessPoolExecutor() as pool:
        tables = [header(task) + "".join(row(pool, name, title) for title in ROWS) for name, task in TASKS.items()]
    made = "\n" + "\n".join(tables) + "\n"
    PAGE.write_text(BLOCK.sub(lambda block: block[1] + made + block[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
