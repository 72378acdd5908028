"""The demo's output: a live picture on a terminal, otherwise a line for each round."""

import math
import os
import shutil
from collections.abc import Mapping
from typing import Any, TextIO

from fedround.demo import contest

Status = Mapping[str, Any]
"""The coordinator's `/status`."""

BARS = "▁▂▃▄▅▆▇█"


class View:
    """The demo's output on `out`."""

    def __init__(self, out: TextIO, silos: int) -> None:
        self._out = out
        self._live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._silos = [contest.name(index, silos) for index in range(silos)]
        self._height = 0
        self._next_round = 0

    def write(self, text: str) -> None:
        """Write text that stays."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def show(self, status: Status) -> None:
        """Show the progress of the federation."""
        if self._live:
            self._draw(self._picture(status))
            return
        for done in status["last_rounds"]:
            if done["round"] >= self._next_round:
                self._next_round = done["round"] + 1
                self.write(self._line(done, status))

    def _draw(self, lines: list[str]) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = [line[: columns - 1] for line in lines[: rows - 1]]
        # Move the cursor to the start of the last picture, and erase it.
        back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        self._height = len(lines)
        self.write(back + "\n".join(lines))

    def _picture(self, status: Status) -> list[str]:
        done = status["last_rounds"]
        errors = [_error(round) for round in done]
        states = {participant["name"]: participant["state"] for participant in status["participants"]}
        return [
            self._line(done[-1], status) if done else status["state"],
            "".join(BARS[int(7 * (error - min(errors)) / (max(errors) - min(errors) or 1))] for error in errors),
            *(f"  {name:40}  {states.get(name, 'away')}" for name in self._silos),
        ]

    def _line(self, done: Status, status: Status) -> str:
        who = f"{done['counted']} of {len(self._silos)} silos"
        return f"round {done['round'] + 1:3} of {status['rounds']}  {who}  {done['seconds']:6.2f} s  error {_error(done):.4f}"


def _error(done: Status) -> float:
    return math.sqrt(done["figures"]["held_out_mse"])
