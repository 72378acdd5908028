"""A Prometheus that scrapes a federation with a label `namespace`, and receives a silo's metrics through its coordinator.

Every panel and every alert must see the relayed silo as it sees the scraped one.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.test_pushed import of_receiver, rules
from support.dashboards import asked, queries, runbook_queries
from support.processes import Process, joining, running, until
from support.prometheus import RULES
from support.stores import Store, prometheus3

SCRAPED, RELAYED = "anna", "berta"
NAMESPACE = "fl"
ALL = '*,*{source="local"}'
PANELS = [each for each in dict.fromkeys(queries()) if "$participant" in each[1]]
GROUPED = [query for query in (*(query for _, query in (*queries(), *runbook_queries())), *rules()) if "$participant" not in query]


@dataclass(frozen=True)
class Seen:
    store: Store

    def shows(self, query: str, participant: str = "") -> set[frozenset[tuple[str, str]]]:
        """Return the series that a query finds for one participant in the selected namespace, without labels of their transport."""
        asked_for = asked(query, participant=participant, interval="20s", window="20s", namespace=NAMESPACE)
        return {frozenset(pair for pair in each if pair[0] not in ("job", "instance")) for each in self.store.query(asked_for)}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    directory: Path = tmp_path_factory.mktemp("relayed")
    (tokens := directory / "tokens").write_text(f"{SCRAPED} token-of-{SCRAPED}\n{RELAYED} token-of-{RELAYED}\n")
    addresses: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        store = stack.enter_context(prometheus3(directory / "store", targets=addresses, rules=RULES, namespace=NAMESPACE))
        settings = {f"{role}_TOKENS_FILE": str(tokens) for role in ("COORDINATOR", "AGGREGATOR")}
        settings |= {"COORDINATOR_OTLP_ENDPOINT": of_receiver(store), "COORDINATOR_OTLP_NAMESPACE": NAMESPACE}
        settings |= {"COORDINATOR_ROUNDS": "0", "COORDINATOR_MIN_CLIENTS": "2"}
        platform = stack.enter_context(running("platform", **settings))

        def silo(name: str, **settings: str) -> Process:
            mood = directory / name
            mood.touch()
            own = {"PARTICIPANT_NAME": name, "PARTICIPANT_TOKEN": f"token-of-{name}", **settings}
            options = {"size": 5, "mood": str(mood)}
            return stack.enter_context(running("participant", **joining(platform, "moody:Moody", options, **own)))

        scraped = silo(SCRAPED)
        silo(RELAYED, PARTICIPANT_PUSH="coordinator", PARTICIPANT_PUSH_ALLOW=ALL, OTEL_METRIC_EXPORT_INTERVAL="1000")
        addresses |= {
            ("coordinator", "c"): f"127.0.0.1:{platform.ports['COORDINATOR_OPS_PORT']}",
            ("aggregator", "a"): f"127.0.0.1:{platform.ports['AGGREGATOR_OPS_PORT']}",
            ("participant", "p"): scraped.ops,
        }
        store.find(addresses)
        # As many samples of each as the windows below need.
        samples = "min(count_over_time(fedround_participant_rounds_joined_total[20s]))"
        until(lambda: len(store.query("fedround_participant_info")) == 2 and min(store.query(samples).values()) >= 15, 90)
        yield Seen(store)


def test_the_federation_has_enough_data_to_compare(seen: Seen) -> None:
    assert sum(bool(seen.shows(query, SCRAPED)) for _, query in PANELS) > 30
    assert sum(bool(seen.shows(query)) for query in GROUPED) > 80


@pytest.mark.parametrize(("panel", "query"), PANELS)
def test_a_panel_of_a_participant_shows_a_relayed_one(seen: Seen, panel: str, query: str) -> None:
    until(lambda: seen.shows(query, RELAYED) >= seen.shows(query, SCRAPED), 20)


@pytest.mark.parametrize("query", list(dict.fromkeys(GROUPED)))
def test_relayed_series_are_grouped_with_those_of_their_federation(seen: Seen, query: str) -> None:
    """All series with a namespace have this one, and a query that shows one participant shows the other."""
    found = [dict(each) for each in seen.shows(query)]
    assert {each["namespace"] for each in found if "namespace" in each} <= {NAMESPACE}
    if re.search(r"by \([^)]*\bnamespace\b", query):
        assert all("namespace" in each for each in found), query
    names = {each.get("participant") or each.get("name") for each in found}
    assert (SCRAPED in names) == (RELAYED in names)
