"""House prices in Ames, Iowa: a data set in silos, a participant that trains on one silo, and a federation to watch.

`HousePrices` is a participant as users write it. `fedround demo` runs the federation.
"""

import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from fedround.demo.ames import SALES
from fedround.demo.participant import HousePrices

__all__ = ["HousePrices", "add_arguments", "run"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `fedround demo`."""
    parser.add_argument(
        "--silos", type=_silos, default=10, help="number of participants, each with different sales [default %(default)s]"
    )
    parser.add_argument("--rounds", type=_positive, default=40, help="number of rounds [default %(default)s]")
    parser.add_argument("--epochs", type=_positive, default=5, help="epochs of each participant in a round [default %(default)s]")


def run(arguments: Mapping[str, Any]) -> int:
    """Run a federation and show it. Returns the exit code. Raises `FedroundError` if training does not complete."""
    from fedround.demo.federation import show  # not at the top: a participant does not need it

    show(arguments["silos"], arguments["rounds"], arguments["epochs"])
    return os.EX_OK


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _silos(text: str) -> int:
    if _positive(text) > len(SALES):
        raise ArgumentTypeError(f"must be at most {len(SALES)}, the number of neighbourhoods")
    return int(text)
