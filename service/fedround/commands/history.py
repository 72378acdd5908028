"""`fedround runs` and `fedround history`: the runs of a platform, and the rounds of one, from the coordinator's ops port."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedround.commands import ops_port, view
from fedround.commands.ops_port import HISTORY, RUNS, Target
from fedround.common.durable import Directory, replace
from fedround.errors import FedroundError

ADVICE = "is this the coordinator's ops port, by default 9081?"
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
    found = _request(url, HISTORY + (f"?run={quote(run)}" if run else ""), token, ca_file)
    text = json.dumps(found, indent=1) + "\n" if output.suffix == ".json" else _csv(found["rounds"])
    try:
        replace(Directory(output.parent, mode=0o666), output.name, [text.encode()])
    except OSError as error:
        raise FedroundError(f"cannot write the history to {output}: {error.strerror}") from error
    return f"{output}: {len(found['rounds'])} rounds of run {found['run']['name']}"


def _request(url: str, path: str, token: str | None, ca_file: str | None) -> Any:
    target = Target(ops_port.check_url(url), "coordinator", ca_file=ca_file)
    status, body = target.request(path, ops_port.token(token, "coordinator"))
    found = ops_port.decode(body)
    if status == 401:
        raise FedroundError(f"refused with 401: {ops_port.token_advice('coordinator')}")
    if status != 200 or not found or not found.keys() & {"runs", "rounds"}:
        raise FedroundError(f"{url}: {status}: {(found or {}).get('detail') or ADVICE}")
    return found


def _csv(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return one line per round: numbers, metrics, statistics of the model's weights, and the counted participants."""
    values = [
        {
            "evaluation": round.get("evaluation", {}).get("metrics", {}),
            "server": round.get("server", {}).get("metrics", {}),
            "metric": round.get("metrics", {}),
            "weight": round.get("weights", {}),
        }
        for round in rounds
    ]
    kinds = ("evaluation", "server", "metric", "weight")
    columns = list(dict.fromkeys((kind, name) for kind in kinds for each in values for name in each[kind]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_PLAIN, *(f"{kind}_{name}" for kind, name in columns), "participants"])
    for round, each in zip(rounds, values, strict=True):
        plain = [_time(round["ended"]) if name == "ended" else round.get(name, "") for name in _PLAIN]
        participants = " ".join(member["name"] for member in round["participants"])
        writer.writerow([*plain, *(each[kind].get(name, "") for kind, name in columns), participants])
    return text.getvalue()


def _time(seconds: float | None) -> str:
    return "" if not seconds else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
