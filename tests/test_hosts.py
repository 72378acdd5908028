import socket
from functools import partial

import pytest

import fedround
from fedround.errors import ConfigurationError, Untrusted
from fedround.http.client import AggregatorClient
from fedround.http.hosts import trusted
from support.known_answer import KnownAnswer
from support.processes import joining, running

TRUSTED = [
    ("http://coordinator:8081", "http://aggregator:8082"),
    ("http://fl-coordinator:8081", "http://fl-aggregator.silos.svc.cluster.local:8082"),
    ("http://fl-coordinator.silos:8081", "http://fl-aggregator.silos.svc:8082"),
    ("http://fl-coordinator.silos.svc.cluster.local", "http://fl-aggregator.silos.svc.cluster.local"),
    ("http://localhost:8081", "http://127.0.0.1:8082"),
    ("http://127.0.0.1:8081", "http://[::1]:8082"),
    ("http://10.0.0.7:8081", "http://10.0.0.7:8082"),
    ("https://fl.example.org", "https://fl.example.org:8082"),
    ("https://FL.example.org.", "https://agg.example.org"),
    ("https://example.org", "https://agg.example.org"),
    ("https://fl.example.org", "https://example.org"),
    ("https://fl.example.org", "https://a.b.example.org"),
    ("https://fl.shop.co.uk", "https://agg.shop.co.uk"),
    ("http://fl.example.org", "https://agg.example.org"),
    ("https://localhost:8081", "http://127.0.0.1:8082"),
]
OTHERS = [
    ("https://fl.example.org", "https://agg.example.com"),
    ("https://fl.example.org", "https://notexample.org"),
    ("https://fl.example.org", "https://fl.example.org.evil.net"),
    ("https://fl.example.org", "https://aggregator"),
    ("https://example.org", "https://other.org"),
    ("https://shop.co.uk", "https://evil.co.uk"),
    ("https://fl.example.org", "http://agg.example.org"),
    ("https://coordinator", "http://aggregator"),
    ("http://fl-coordinator.silos:8081", "http://fl-aggregator.elsewhere.svc:8082"),
    ("http://fl.example.org", "http://fl-aggregator.silos.svc:8082"),
    ("http://10.0.0.7:8081", "http://10.0.0.8:8082"),
    ("http://10.0.0.7:8081", "http://evil"),
    ("http://coordinator", "http://10.0.0.8"),
    ("http://localhost:8081", "http://evil:8082"),
    ("http://evil.1", "http://127.0.0.1"),
    ("http://[2001:db8::1]", "http://[2001:db8::2]"),
]


@pytest.mark.parametrize(("coordinator", "aggregator"), TRUSTED)
def test_an_aggregator_beside_its_coordinator_gets_the_token(coordinator: str, aggregator: str) -> None:
    assert trusted(aggregator, coordinator)


@pytest.mark.parametrize(("coordinator", "aggregator"), OTHERS)
def test_another_aggregator_gets_the_token_only_if_it_is_allowed(coordinator: str, aggregator: str) -> None:
    assert not trusted(aggregator, coordinator)
    assert trusted(aggregator, coordinator, ["*"])


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("agg.example.net", "agg.example.net", True),
        ("*.example.net", "agg.example.net", True),
        ("*.example.net", "a.b.example.net", True),
        ("*.example.net", "example.net", False),
        ("*.example.net", "evilexample.net", False),
        ("10.0.0.8", "10.0.0.8", True),
        ("2001:db8::2", "[2001:db8::2]", True),
    ],
)
def test_patterns_match_hosts(pattern: str, host: str, fits: bool) -> None:
    assert trusted(f"http://{host}:8082", "https://fl.example.org", [pattern]) is fits


def test_nothing_is_sent_to_an_untrusted_aggregator() -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        client = AggregatorClient(
            max_model_size=1000, token="secret", trusted=partial(trusted, coordinator_url="http://fl.example.org")
        )
        for transfer in (client.download, partial(client.upload, buffers=[b"an update"])):
            with pytest.raises(Untrusted, match=rf"not sent to {url}.*PARTICIPANT_AGGREGATOR_ALLOW"):
                transfer(url, "id", "token")
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
        client.close()


def test_a_round_with_an_untrusted_aggregator_fails_with_the_reason() -> None:
    with (
        running("platform", COORDINATOR_AGGREGATOR_URL="http://aggregator.example:8082", COORDINATOR_TOKEN="secret") as platform,
        running(
            "participant",
            **joining(platform, "known_answer:KnownAnswer", PARTICIPANT_TOKEN="secret", PARTICIPANT_MAX_FAILURES="1"),
        ) as participant,
    ):
        participant.said("round 0 .*PARTICIPANT_TOKEN is not sent to http://aggregator.example:8082.*PARTICIPANT_AGGREGATOR_ALLOW")
        assert participant.wait() == 78


@pytest.mark.parametrize("wrong", ["example.org", ["*.*.org"], ["http://example.org"], [7]])
def test_an_invalid_list_of_hosts_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="aggregator_allow must be a list of host names"):
        fedround.run_participant(KnownAnswer(0), "http://127.0.0.1:1", aggregator_allow=wrong)  # type: ignore[arg-type]  # on purpose
