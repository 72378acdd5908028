"""A real Prometheus and a real Alertmanager with the shipped rules, and a receiver of alerts.

Alerts wait for minutes and hours. So every duration in the rules is divided by `FASTER`.
"""

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.http_server import Handler, Server
from support.processes import at_work, free_port
from support.tools import tool

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
FASTER = 60
OPS_TOKEN = "token-of-the-operators"
"""The token that Prometheus sends to each service."""
_DURATION = re.compile(r"(\[|(?<=\d[smhd]):|\bfor: |\boffset )(\d+)([smhd])\b")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def faster(text: str) -> str:
    """Shorten all durations in rules, or in a query of a runbook."""
    return _DURATION.sub(lambda found: f"{found[1]}{int(found[2]) * _SECONDS[found[3]] * 1000 // FASTER}ms", text)


@dataclass
class Told:
    """The alerts that the Alertmanager sent, firing and resolved, with their labels."""

    firing: list[dict[str, Any]] = field(default_factory=list)
    resolved: list[dict[str, Any]] = field(default_factory=list)

    def of(self, alert: str) -> list[dict[str, Any]]:
        """Return the firing alerts with this name."""
        return [each for each in self.firing if each["labels"]["alertname"] == alert]

    def names(self, status: str) -> set[str]:
        alerts: list[dict[str, Any]] = getattr(self, status)
        return {_name(alert["labels"]) for alert in alerts}


def _name(labels: Mapping[str, str]) -> str:
    return " ".join(labels[label] for label in ("alertname", "side", "outcome", "source", "state") if label in labels)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus. `query` returns the value of each series, by its labels."""

    url: str
    told: Told
    targets: Path
    """Directory with the addresses of each job."""

    def find(self, job: str, *addresses: str) -> None:
        """Replace the addresses of a job, as service discovery does after an installation or a removal.

        An address is `host:port`, with the prefix `https://` if it serves TLS.
        """
        new = self.targets / f"{job}.new"
        secured = {True: {"__scheme__": "https"}, False: {}}
        targets = [{"targets": [a.removeprefix("https://")], "labels": secured[a.startswith("https://")]} for a in addresses]
        new.write_text(json.dumps(targets))
        new.rename(self.targets / f"{job}.json")

    def query(self, query: str, **parameters: object) -> list[tuple[dict[str, str], float]]:
        found = self._get("/api/v1/query", query=query, **parameters)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def value(self, query: str) -> float:
        """Return the sum of the values of a query; 0 if there are none."""
        return sum(value for _, value in self.query(query))

    def history(self, query: str, start: float, end: float) -> int:
        """Return the number of series that had a value in this time."""
        return len(self._get("/api/v1/query_range", query=query, start=start, end=end, step=1)["result"])

    def exemplars(self, query: str, start: float, end: float) -> list[Any]:
        found: list[Any] = self._get("/api/v1/query_exemplars", query=query, start=start, end=end)
        return found

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: object) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus(
    directory: Path, targets: Mapping[str, Sequence[str]], *, interval: str = "1s", labels: bool = False
) -> Iterator[Prometheus]:
    """Run both within the block. `targets`: addresses by job. `labels`: keep the labels of the targets."""
    told = Told()
    with _receiving(told) as webhook, _alertmanager(directory, webhook) as alertmanager:
        rules = directory / "rules"
        rules.mkdir()
        for path in RULES:
            (rules / path.name).write_text(faster(path.read_text()))
        jobs = [
            {
                "job_name": job,
                "honor_labels": labels,
                "file_sd_configs": [{"files": [str(directory / f"{job}.json")]}],
                "tls_config": {"insecure_skip_verify": True},
                "authorization": {"credentials": OPS_TOKEN},  # services without an operators' token ignore it
            }
            for job in targets
        ]
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
            "rule_files": [str(rules / "*.yml")],
            "scrape_configs": jobs,
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        address = f"127.0.0.1:{free_port()}"
        command = [
            tool("prometheus"),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
            "--rules.alert.resend-delay=1s",
        ]
        found = Prometheus(f"http://{address}", told, directory)
        for job, addresses in targets.items():
            found.find(job, *addresses)
        with at_work(command, f"http://{address}/-/ready", directory / "prometheus.log"):
            yield found


@contextmanager
def _alertmanager(directory: Path, webhook: str) -> Iterator[str]:
    """Run an Alertmanager with the shipped configuration, with shorter intervals and a receiver."""
    text = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
    text = re.sub(r"(group_\w+: )\w+$", r"\g<1>1s", text, flags=re.MULTILINE)
    text, count = re.subn(r'- name: "null".*', f"- {{name: \"null\", webhook_configs: [{{url: '{webhook}'}}]}}", text)
    assert count == 1
    (directory / "alertmanager.yml").write_text(text)
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus-alertmanager"),
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with at_work(command, f"http://{address}/-/ready", directory / "alertmanager.log"):
        yield address


@contextmanager
def _receiving(told: Told) -> Iterator[str]:
    """Serve a webhook that records what an Alertmanager sends."""

    class Noting(Handler):
        def take(self) -> None:
            for alert in json.loads(self.body())["alerts"]:
                (told.firing if alert["status"] == "firing" else told.resolved).append(alert)
            self.answer()

    with Server(Noting) as server:
        yield f"{server.url}/"
