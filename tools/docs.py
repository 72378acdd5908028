"""Write the tables of docs/reference that come from the code: settings, exit codes, endpoints, metrics. `--check` reports old ones.

The page of settings is written as a whole; the other pages have blocks between comments.
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
from fedround.http.certificates import Validity
from fedround.observability import endpoints
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.observability.openapi import Operation
from fedround.tensors import measures
from generated import ROOT, main

SERVICES: tuple[type[Settings], ...] = (ParticipantSettings, CoordinatorSettings, AggregatorSettings)
BLOCK = re.compile(r"(<!-- made by tools/docs.py: ([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

HEAD = """\
# Settings

<!-- Made by tools/docs.py from service/fedround/common/settings/: `.venv/bin/python tools/docs.py` -->

Every setting is an environment variable and a flag. A flag takes precedence over the variable, the variable over the file of `-c`,
and the file over the default. An empty variable counts as not set.

| command | shows |
| --- | --- |
| `fedround COMMAND --help` | all settings of a command |
| `fedround COMMAND --show-settings` | the effective settings, and where each value comes from; secrets are masked |

| type | examples |
| --- | --- |
| duration | `500ms`, `30s`, `2m`, `1h`, or plain seconds |
| size | `512MiB`, `1GiB`, `10MB`, or plain bytes |
| secret | Use a variable or a file, because other users of the machine can read command lines. |

An invalid setting ends the process with [exit code 78](exit-codes.md) and a message that names all invalid settings. An unknown
variable with one of the prefixes below is logged as a warning.

`fedround platform` reads the variables of coordinator and aggregator. Its flags have the service's name in front:
`--coordinator-rounds`, `--aggregator-port`.
"""

TAIL = """
## Files of XAIN FL 0.8

`fedround coordinator -c FILE` and `fedround aggregator -c FILE` read the TOML files of XAIN FL 0.8.

| in the file | effect |
| --- | --- |
| `[federated_learning]`, `aggregator_url`, `[api] bind_address` | as in 0.8 |
| `[aggregation.python]` | `weighted_average` and `model_sum` select these strategies. Any other value is a class, `module:Class`. |
| `[rpc]`, `[metric_store]`, `[logging]`, `log_level` | ignored with a warning: see `COORDINATOR_AGGREGATOR_INTERNAL_URL` |
"""

MEMBER = events.Contribution("anna", 1, 0.1, {"loss": 0.5})
STATISTICS = measures.statistics(np.ones(1))
ONE_OF_EACH = [  # events that give metrics their labels
    events.ExchangeEnded("GET", "/", 200, None, 0.1, 0, 0),
    events.RequestServed("GET", "/", 200, 0.1),
    events.MetricsReported(0, (("loss", 0.5),)),
    events.RunStarted("id", "default"),
    events.RoundJoined(0, repeated=False, traceparent=None, run_id="id", run_name="default"),
    events.ModelEvaluated("", 0, 1, (("loss", 0.5),), 0.1),
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
    """Return the page of all settings."""
    return HEAD + "".join(table(cls) for cls in SERVICES) + TAIL


def exit_codes() -> str:
    """Return a table of the exit codes."""
    return "".join(["| code | meaning |\n| --- | --- |\n", *(f"| {code} | {meaning} |\n" for code, meaning in MEANINGS.items())])


def metrics(kind: type[Metrics]) -> str:
    """Return a table of a service's metrics."""
    service = kind()
    rounds = Rounds(Plan(), Random())
    anna = rounds.present.add(0.0, "", "anna", None, extended=True)
    anna.set_claim(Claim(2, 0))
    rounds.heartbeat(0.0, anna.id)
    silos = Silos(rounds.present)
    silos.note_certificate(anna.id, (0.0, 0.0))
    service.certificates.watch(lambda: {"": Validity(0.0, 0.0)})
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


def operations() -> str:
    """Return a table of all HTTP endpoints."""

    def row(operation: Operation, service: str) -> str:
        whose = "participants" if operation.access == "participant" else "operators"
        return f"| `{operation.method.upper()} {operation.path}` | {service} | {whose} | {operation.summary} |\n"

    rows = ["| request | service | port for | what it does |\n| --- | --- | --- | --- |\n"]
    rows += [row(operation, "all") for operation in endpoints.COMMON]
    for api in (endpoints.COORDINATOR, endpoints.AGGREGATOR):
        rows += [row(operation, api.service) for operation in api.operations if operation not in endpoints.COMMON]
    return "".join(rows)


def kinds() -> tuple[type[Metrics], ...]:
    """Return the metrics of each service."""
    return ParticipantMetrics, CoordinatorMetrics, AggregatorMetrics


def filled(text: str) -> str:
    """Return a page with updated blocks."""
    blocks = {
        "exit codes": exit_codes(),
        "endpoints": operations(),
        "metrics of participants": metrics(ParticipantMetrics),
        "metrics of the coordinator": metrics(CoordinatorMetrics),
        "metrics of the aggregator": metrics(AggregatorMetrics),
    }
    return BLOCK.sub(lambda block: block[1] + blocks[block[2]] + block[4], text)


def pages() -> Iterator[tuple[Path, str]]:
    """Each page with what belongs into it."""
    for name, make in {"settings.md": settings, "http.md": filled, "metrics.md": filled, "exit-codes.md": filled}.items():
        page = ROOT / "docs" / "reference" / name
        yield page, make(page.read_text())


if __name__ == "__main__":
    sys.exit(main(pages()))
