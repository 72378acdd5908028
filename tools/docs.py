"""Write the generated tables of docs/: settings, exit codes, metrics. With `--check`, list those that are out of date.

docs/settings.md is made as a whole; the other pages have blocks between comments.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from fedround import events
from fedround.cli import MEANINGS
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings
from fedround.common.wire import Claim
from fedround.coordinator.plan import Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.silos import Silos
from fedround.coordinator.status import by_name, status
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.tensors import measures
from generated import ROOT, main

SERVICES: tuple[type[Settings], ...] = (ParticipantSettings, CoordinatorSettings, AggregatorSettings)
BLOCK = re.compile(r"(<!-- made by tools/docs.py: ([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

HEAD = """\
# Settings

<!-- Made by tools/docs.py from service/fedround/common/settings.py: `.venv/bin/python tools/docs.py` -->

Every setting is a variable and a flag of its command. The flag beats the variable, the variable beats the file of `-c`,
the file beats the default. An empty variable counts as not set. `fedround COMMAND --help` shows the same,
`fedround COMMAND --show-settings` those in force and who set each of them, secrets masked.

- duration: `500ms`, `30s`, `2m`, `1h`, or plain seconds
- size: `512MiB`, `1GiB`, `10MB`, or plain bytes
- secret: better in a file than on a command line, which others on the machine can read

A setting that is wrong ends the process with 78 and a message that names all that is wrong. A variable that begins like
these and is none of them is warned of. `fedround platform` reads the variables of coordinator and aggregator; its flags
are theirs with the service's name before it: `--coordinator-rounds`, `--aggregator-port`.
"""

TAIL = """
## Files of XAIN FL 0.8

`fedround coordinator -c FILE` and `fedround aggregator -c FILE` read the TOML files of XAIN FL 0.8: `[federated_learning]`,
`aggregator_url`, `[api] bind_address` and `[aggregation.python]`. Its classes `weighted_average` and `model_sum` become the
strategies of these names, any other becomes `module:Class`. `[rpc]`, `[metric_store]`, `[logging]` and `log_level` are
accepted and ignored with a warning: coordinator and aggregator find each other by `COORDINATOR_AGGREGATOR_INTERNAL_URL`.
"""

MEMBER = events.Contribution("anna", 1, 0.1, {"loss": 0.5})
STATISTICS = measures.statistics(np.ones(1))
ONE_OF_EACH = [  # of what has labels that only the facts tell
    events.ExchangeEnded("GET", "/", 200, None, 0.1, 0, 0),
    events.RequestServed("GET", "/", 200, 0.1),
    events.Reported(0, (("loss", 0.5),)),
    events.WeightsMeasured(0, "global", 1, STATISTICS),
    events.RoundCompleted(0, "", (), 0, 1, 1, 0.1, (), (MEMBER,)),
    events.Evaluated(0, 1, (), (), (), (MEMBER,)),
    events.UpdateCounted(0, "", 1),
    events.Revoked(0, "", "deadline", "anna"),
]


def table(cls: type[Settings]) -> str:
    """Return the table of a service's settings."""
    rows = []
    for row in cls.rows():
        cells = [f"`{row.variable}`", f"`{row.flag()}`", row.kind.replace("|", ", "), f"`{row.default}`", row.description]
        rows.append(f"| {' | '.join(cells)} |".replace(" `` ", " "))
    title = cls.prefix.capitalize()
    return "\n".join([f"\n## {title}\n", "| variable | flag | value | default | |", "| --- | --- | --- | --- | --- |", *rows, ""])


def settings(_: str) -> str:
    """Return the content of docs/settings.md."""
    return HEAD + "".join(table(cls) for cls in SERVICES) + TAIL


def exit_codes() -> str:
    """Return a table of the exit codes."""
    return "".join(["| code | meaning |\n| --- | --- |\n", *(f"| {code} | {meaning} |\n" for code, meaning in MEANINGS.items())])


def metrics(kind: type[Metrics]) -> str:
    """Return a table of a service's metrics."""
    service = kind()
    rounds = Rounds(Plan(), Random())
    anna = rounds.present.add(0.0, "", "anna", None, extended=True)
    anna.claims(Claim(2, 0))
    rounds.heartbeat(0.0, anna.id)
    silos = Silos(rounds.present)
    service.show(lambda: status(rounds, 0.0) | by_name(rounds, silos, 0.0, 0.0, 1) | {"receiving": 0})
    for fact in ONE_OF_EACH:
        service(fact)
        silos.note(0.0, fact)
    rows = ["| name | type | labels | |\n| --- | --- | --- | --- |\n"]
    for family in service.registry.collect():
        if not family.name.startswith(("process_", "python_")):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
            rows.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |\n")
    return "".join(rows)


def kinds() -> tuple[type[Metrics], ...]:
    """Return the metrics of each service."""
    return ParticipantMetrics, CoordinatorMetrics, AggregatorMetrics


def filled(text: str) -> str:
    """Return a page with updated blocks."""
    blocks = {
        "exit codes": exit_codes(),
        "metrics of participants": metrics(ParticipantMetrics),
        "metrics of the coordinator": metrics(CoordinatorMetrics),
        "metrics of the aggregator": metrics(AggregatorMetrics),
    }
    return BLOCK.sub(lambda block: block[1] + blocks[block[2]] + block[4], text)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield each page with its content."""
    for name, make in {"settings.md": settings, "operations.md": filled, "reference/exit-codes.md": filled}.items():
        page = ROOT / "docs" / name
        yield page, make(page.read_text())


if __name__ == "__main__":
    sys.exit(main(pages()))
