"""House prices in Ames, Iowa: a data set in silos, a participant that learns from one of them, and a federation to watch.

`HousePrices` is a participant like any user's own; `fedround demo` is the rest.
"""

import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from fedround.demo.ames import SALES
from fedround.demo.participant import HousePrices

__all__ = ["HousePrices", "add_arguments", "run"]


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `fedround demo`."""
    parser.add_argument("--silos", type=_silos, default=10, help="participants, each with sales of its own [default %(default)s]")
    parser.add_argument("--rounds", type=_positive, default=40, help="rounds of training [default %(default)s]")
    parser.add_argument("--epochs", type=_positive, default=5, help="a participant's epochs in a round [default %(default)s]")


def run(arguments: Mapping[str, Any]) -> int:
    """Show a federation at work. Returns the exit code. Raises `FedroundError` when training was not completed."""
    # A participant needs none of this.
    from fedround.demo.federation import show

    show(arguments["silos"], arguments["rounds"], arguments["epochs"])
    return os.EX_OK


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError("a number from 1 on, please")
    return int(text)


def _silos(text: str) -> int:
    if _positive(text) > len(SALES):
        raise ArgumentTypeError(f"{len(SALES)} neighbourhoods make {len(SALES)} silos at most")
    return int(text)
