"""Write docs/settings.md from the settings and exit codes themselves; `--check` says whether it is up to date."""

import sys
from pathlib import Path

from fedround.cli import MEANINGS
from fedround.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = """\
# Settings

<!-- Made by tools/docs.py from service/fedround/settings.py: `.venv/bin/python tools/docs.py` -->

Every setting is a variable and a flag of its command. The flag beats the variable, the variable beats the file of `-c`,
the file beats the default. An empty variable counts as not set. `fedround COMMAND --help` shows the same.

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

## Exit codes

A second SIGTERM or SIGINT does not wait: coordinator, aggregator and platform then exit with 128 and the signal's number.

| code | meaning |
| --- | --- |
"""


def table(cls: type[Settings]) -> str:
    """One service's settings."""
    rows = []
    for row in cls.rows():
        cells = [f"`{row.variable}`", f"`{row.flag()}`", row.kind.replace("|", ", "), f"`{row.default}`", row.description]
        rows.append(f"| {' | '.join(cells)} |".replace(" `` ", " "))
    title = cls.prefix.capitalize()
    return "\n".join([f"\n## {title}\n", "| variable | flag | value | default | |", "| --- | --- | --- | --- | --- |", *rows, ""])


def page() -> str:
    """All of docs/settings.md."""
    tables = [table(cls) for cls in (ParticipantSettings, CoordinatorSettings, AggregatorSettings)]
    return HEAD + "".join(tables) + TAIL + "".join(f"| {code} | {meaning} |\n" for code, meaning in MEANINGS.items())


def main() -> int:
    """Write the page, or check it."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        print("docs/settings.md is out of date: run tools/docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
