"""`fedround runs` and `fedround history`: the runs of a platform, and the rounds of one, from the coordinator's ops port."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from urllib.parse import quote

from fedround.commands import ops_port, view
from fedround.commands.ops_port import HISTORY, RUNS, Target
from fedround.common.durable import Directory, replace
from fedround.errors import FedroundError

ADVICE = "is this the coordinator's ops port, by default 9081?"
MAX_MEMORY = 1 << 20
"""Maximum number of bytes of a history in memory."""
LONGEST = 60.0
"""Seconds for the coordinator to respond."""
_PLAIN = ("round", "ended", "seconds", "counted", "dropped", "late", "samples", "parameters", "digest")


def runs(url: str, token: str | None, ca_file: str | None) -> str:
    """Return a table of all runs. Raises `FedroundError`."""
    header = ["run", "rounds", "started", "ended", "strategy", "state"]
    rows = [
        [run["name"], str(run["rounds"]), _time(run["started"]), _time(run["ended"]), run["strategy"], run["reason"] or "training"]
        for run in _request(url, RUNS, token, ca_file)["runs"]
    ]
    return "\n".join(view.columns([header, *rows]))


def history(url: str, run: str | None, output: Path, token: str | None, ca_file: str | None) -> str:
    """Write the rounds of a run, by default the current one, to a `.csv` or `.json` file. Return a message for the user.

    Raises:
        FedroundError: The run does not exist, or the file cannot be written.
    """
    if output.suffix not in (".csv", ".json"):
        raise FedroundError(f"--output: {output} must end in .csv or .json")
    with SpooledTemporaryFile(MAX_MEMORY) as file:
        _request(url, HISTORY + (f"?run={quote(run)}" if run else ""), token, ca_file, file)
        try:
            name, count = _parsed(file)
        except (ValueError, KeyError, TypeError):
            raise FedroundError(f"{url}: the response is not a complete history in the format of this version: {ADVICE}") from None
        parts = _csv(file) if output.suffix == ".csv" else _blocks(file)
        try:
            replace(Directory(output.parent, mode=0o666), output.name, parts)
        except OSError as error:
            raise FedroundError(f"cannot write the history to {output}: {error.strerror}") from error
    return f"{output}: {count} rounds of run {name}"


def _request(url: str, path: str, token: str | None, ca_file: str | None, into: IO[bytes] | None = None) -> Any:
    target = Target(ops_port.check_url(url), "coordinator", ca_file=ca_file)
    status, body = target.request(path, ops_port.token(token, "coordinator"), within=LONGEST, into=into)
    found = ops_port.decode(body) or {}
    if status == 401:
        raise FedroundError(f"refused with 401: {ops_port.token_advice('coordinator')}")
    if status != 200 or (into is None and "runs" not in found):
        raise FedroundError(f"{url}: {status}: {found.get('detail') or ADVICE}")
    return found


def _parsed(file: IO[bytes]) -> tuple[str, int]:
    """Return the run's name and number of rounds. Raises `ValueError`, `KeyError` or `TypeError` if this is not a history."""
    file.seek(0)
    name: str = json.loads(file.readline() + b"]}")["run"]["name"]
    return name, sum(1 for _ in _rounds(file))


def _rounds(file: IO[bytes]) -> Iterator[Any]:
    """Yield the rounds of a history, in which each is a line: all of them may not fit into memory."""
    file.seek(0)
    file.readline()  # the run
    for line in file:
        if line == b"]}\n":
            return
        yield json.loads(line.rstrip(b",\n"))
    raise ValueError("the end is missing")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    return iter(lambda: file.read(MAX_MEMORY), b"")


def _csv(file: IO[bytes]) -> Iterator[bytes]:
    """Yield one line per round: numbers, metrics, statistics of the model's weights, and the counted participants."""
    columns: dict[str, dict[str, None]] = {kind: {} for kind in ("evaluation", "server", "metric", "weight")}
    for round in _rounds(file):
        for kind, values in _values(round).items():
            columns[kind] |= dict.fromkeys(values)
    names = [(kind, name) for kind, names in columns.items() for name in names]
    yield _line([*_PLAIN, *(f"{kind}_{name}" for kind, name in names), "participants"])
    for round in _rounds(file):
        found = _values(round)
        plain = [_time(round["ended"]) if name == "ended" else round.get(name, "") for name in _PLAIN]
        participants = " ".join(member["name"] for member in round["participants"])
        yield _line([*plain, *(found[kind].get(name, "") for kind, name in names), participants])


def _values(round: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    return {
        "evaluation": round.get("evaluation", {}).get("metrics", {}),
        "server": round.get("server", {}).get("metrics", {}),
        "metric": round.get("metrics", {}),
        "weight": round.get("weights", {}),
    }


def _line(cells: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _time(seconds: float | None) -> str:
    return "" if not seconds else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
