"""Platforms that serve TLS themselves, and their silos, as processes."""

import json
import re
import shutil
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import processes
from support.certificates import Authority, Pair
from support.processes import ANY_PORT, LOOPBACK, Process, beside, running, until

ROUNDS = 3
PLATFORM = ("COORDINATOR", "AGGREGATOR")
OWN = "fedround_tls_certificate_not_after_timestamp_seconds"
CLIENT = "fedround_coordinator_participant_certificate_not_after_timestamp_seconds"


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.server("platform")


def serving(pair: Pair, *prefixes: str, client_ca: str | None = None) -> dict[str, str]:
    settings: dict[str, str] = {}
    for prefix in prefixes:
        settings |= pair.settings(prefix) | ({f"{prefix}_TLS_CLIENT_CA_FILE": client_ca} if client_ca else {})
    return settings


@contextmanager
def silo(url: str, authority: Authority, own: Pair | None = None, **settings: str) -> Iterator[Process]:
    with running(
        "participant",
        PARTICIPANT_COORDINATOR_URL=url,
        PARTICIPANT_CLASS="support.known_answer:KnownAnswer",
        PARTICIPANT_OPTIONS='{"k": 0, "count": 1}',
        **{"PARTICIPANT_TLS_CA_FILE": authority.file} | (own.settings("PARTICIPANT") if own else {}) | settings,
    ) as participant:
        yield participant


def ask(process: Process, port: str, path: str, authority: Authority) -> Any:
    return json.loads(read(process, port, path, authority))


def read(process: Process, port: str, path: str, authority: Authority) -> str:
    url = f"https://127.0.0.1:{process.ports[port]}{path}"
    with urllib.request.urlopen(url, timeout=10, context=ssl.create_default_context(cafile=authority.file)) as answer:
        text: str = answer.read().decode()
        return text


def ends(process: Process, port: str, authority: Authority, metric: str = OWN) -> dict[str, int]:
    """Return the number of days until each certificate ends, from the metrics, by label."""
    found = re.findall(rf'^{metric}{{\w+="([\w-]+)"}} (\S+)$', read(process, port, "/metrics", authority), re.MULTILINE)
    return {setting: round((float(end) - time.time()) / 86400) for setting, end in found}


def test_silos_train_with_client_certificates_and_their_names(authority: Authority, pair: Pair) -> None:
    settings = serving(pair, *PLATFORM, client_ca=authority.file)
    with running("platform", COORDINATOR_ROUNDS="0", **settings) as platform:
        url = f"https://localhost:{platform.ports['COORDINATOR_PORT']}"
        with silo(url, authority, authority.issue("silo-1", days=5), PARTICIPANT_NAME="liar") as participant:
            participant.said("round 2 completed")
            [seen] = ask(platform, "COORDINATOR_OPS_PORT", "/status", authority)["participants"]
            assert seen["name"] == "silo-1"
            assert ends(platform, "COORDINATOR_OPS_PORT", authority, CLIENT) == {"silo-1": 5}
            assert ask(platform, "AGGREGATOR_OPS_PORT", "/readyz", authority)["ready"]
            assert participant.end() == 0


def test_coordinator_and_aggregator_authenticate_each_other(authority: Authority, pair: Pair) -> None:
    with ExitStack() as stack:
        aggregator = stack.enter_context(
            running("aggregator", **serving(pair, "AGGREGATOR"), **serving(pair, "AGGREGATOR_INTERNAL", client_ca=authority.file))
        )
        urls = {name: url.replace("http:", "https:") for name, url in beside(aggregator).items()}
        trust = {"COORDINATOR_INTERNAL_TLS_CA_FILE": authority.file}
        with running("coordinator", **urls, **trust) as stranger:
            stranger.said(
                "no contact with the aggregator.*the server requires a client certificate: set COORDINATOR_INTERNAL_TLS_CERT_FILE"
            )
        own = authority.issue("coordinator").settings("COORDINATOR_INTERNAL")
        settings = serving(pair, "COORDINATOR") | urls | trust | own
        coordinator = stack.enter_context(running("coordinator", COORDINATOR_ROUNDS=str(ROUNDS), **settings))
        url = f"https://127.0.0.1:{coordinator.ports['COORDINATOR_PORT']}"
        with silo(url, authority) as participant:
            assert participant.wait() == 0
        assert ends(coordinator, "COORDINATOR_OPS_PORT", authority) == dict.fromkeys(
            ["COORDINATOR_TLS_CERT_FILE", "COORDINATOR_INTERNAL_TLS_CERT_FILE", "COORDINATOR_INTERNAL_TLS_CA_FILE"], 2
        )
        assert ends(aggregator, "AGGREGATOR_OPS_PORT", authority) == dict.fromkeys(
            ["AGGREGATOR_TLS_CERT_FILE", "AGGREGATOR_INTERNAL_TLS_CERT_FILE", "AGGREGATOR_INTERNAL_TLS_CLIENT_CA_FILE"], 2
        )


def test_replaced_certificates_cost_no_round(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    own = authority.issue("silo-1")
    shutil.copy(own.cert, cert)
    shutil.copy(own.key, key)
    renewed = Authority(tmp_path, "renewed")
    (both := tmp_path / "both.pem").write_text(Path(authority.file).read_text() + Path(renewed.file).read_text())
    settings = serving(pair, *PLATFORM, client_ca=str(both))
    with running("platform", COORDINATOR_ROUNDS="0", COORDINATOR_ROUND_TIMEOUT="5s", **settings) as platform:
        url = f"https://localhost:{platform.ports['COORDINATOR_PORT']}"
        with silo(url, authority, Pair(cert, key)) as participant:
            participant.said("round 1 completed")
            new = renewed.issue("silo-1")
            shutil.copy(new.cert, cert)
            shutil.copy(new.key, key)
            participant.said(r"certificates reloaded.*cert\.pem")  # although its connection is always in use
            shutil.copy(renewed.file, both)  # from now on only a client with the new certificate is accepted
            platform.said(r"certificates reloaded.*both\.pem")
            round = ask(platform, "COORDINATOR_OPS_PORT", "/status", authority)["round"]
            participant.said(f"round {round + 20} completed")
            status = ask(platform, "COORDINATOR_OPS_PORT", "/status", authority)
            assert [seen["name"] for seen in status["participants"]] == ["silo-1"]
            assert participant.end() == 0
        assert "lost contact" not in participant.log


@pytest.fixture(scope="module")
def strict(authority: Authority, pair: Pair) -> Iterator[Process]:
    with running("platform", AGGREGATOR_OPS_TOKEN="ops", **serving(pair, *PLATFORM, client_ca=authority.file)) as platform:
        yield platform


MISTAKES = {
    "unknown authority": ({"CA": "{stranger}"}, "certificate verify failed.*set PARTICIPANT_TLS_CA_FILE"),
    "no certificate": ({"CERT": ""}, "the server requires a client certificate: set PARTICIPANT_TLS_CERT_FILE"),
    "foreign certificate": ({"CERT": "stranger"}, "the server does not accept the certificate of PARTICIPANT_TLS_CERT_FILE"),
    "expired certificate": ({"CERT": "expired"}, "the server does not accept the certificate of PARTICIPANT_TLS_CERT_FILE"),
    "no name": ({"CERT": "nameless"}, "names no participant.*is PARTICIPANT_TLS_CERT_FILE"),
    "other host": ({"URL": "https://127.1:{port}"}, "it is valid for localhost, 127.0.0.1"),
    "no TLS": ({"URL": "http://localhost:{port}"}, "this port speaks TLS: use https://"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tls_errors_are_in_the_log_and_in_readyz(mistake: str, strict: Process, authority: Authority, tmp_path: Path) -> None:
    settings, complaint = MISTAKES[mistake]
    stranger = Authority(tmp_path, "stranger")
    certificates = {
        "silo": lambda: authority.issue("silo-1"),
        "stranger": lambda: stranger.issue("silo-1"),
        "expired": lambda: authority.issue("silo-1", days=-1),
        "nameless": lambda: authority.issue("nameless", common="A Hospital"),
    }
    port = strict.ports["COORDINATOR_PORT"]
    asked = {"CERT": "silo", "URL": f"https://localhost:{port}", "CA": authority.file} | {
        name: value.format(port=port, stranger=stranger.file) for name, value in settings.items()
    }
    own = certificates[asked["CERT"]]() if asked["CERT"] else None
    with silo(asked["URL"], authority, own, PARTICIPANT_TLS_CA_FILE=asked["CA"], PARTICIPANT_GIVE_UP_AFTER="3s") as participant:
        participant.said(complaint)
        until(lambda: re.search(complaint, str(participant.probe("/readyz")[1]["reasons"])))
        assert participant.wait() == 69
        assert re.search(complaint, participant.log.splitlines()[-1])


@pytest.mark.parametrize("service", ["coordinator", "aggregator", "participant"])
def test_an_unusable_certificate_exits_with_78(service: str) -> None:
    prefix = "PARTICIPANT_OPS" if service == "participant" else service.upper()
    settings = {f"{prefix}_TLS_CERT_FILE": "/nowhere"}
    if service == "participant":
        settings |= {"PARTICIPANT_COORDINATOR_URL": "http://127.0.0.1:1", "PARTICIPANT_CLASS": "fedround.demo:HousePrices"}
    done = processes.fedround(service, **LOOPBACK | ANY_PORT | settings)
    assert done.returncode == 78
    assert f"{prefix}_TLS_CERT_FILE: /nowhere: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ops_port_of_a_participant_can_use_tls(authority: Authority, pair: Pair) -> None:
    own = authority.issue("silo-1", days=5)
    with silo("http://127.0.0.1:1", authority, own, **pair.settings("PARTICIPANT_OPS")) as participant:
        assert ask(participant, "PARTICIPANT_OPS_PORT", "/livez", authority) == {"alive": True}
        assert ends(participant, "PARTICIPANT_OPS_PORT", authority) == {
            "PARTICIPANT_OPS_TLS_CERT_FILE": 2,
            "PARTICIPANT_TLS_CERT_FILE": 5,
            "PARTICIPANT_TLS_CA_FILE": 2,
        }
        assert participant.end() == 0


def test_commands_can_use_tls(strict: Process, authority: Authority, pair: Pair, tmp_path: Path) -> None:
    port = strict.ports["COORDINATOR_OPS_PORT"]
    url, model = f"https://localhost:{port}", f"https://localhost:{strict.ports['AGGREGATOR_OPS_PORT']}"
    # On the same machine, a probe finds the service's certificate with the variables of the service.
    here = LOOPBACK | {"COORDINATOR_OPS_PORT": port}
    assert processes.fedround("healthcheck", "coordinator", **here, **pair.settings("COORDINATOR")).stdout == "ready\n"
    other = authority.server("other").settings("COORDINATOR")
    assert "certificate verify failed" in processes.fedround("healthcheck", "coordinator", **here, **other).stdout
    assert "this port speaks TLS: use https://" in processes.fedround("healthcheck", "coordinator", **here).stdout
    for trusted in (authority.file, pair.cert):
        done = processes.fedround("status", "--from", url, "--ca-file", trusted)
        assert json.loads(done.stdout)["ready"]
    assert "set --ca-file" in processes.fedround("status", "--from", url).stderr
    assert "--ca-file: /nowhere: No such file" in processes.fedround("status", "--from", url, "--ca-file", "/nowhere").stderr
    fetch = ("model", "--from", model, "-o", str(tmp_path / "model.npy"))
    assert "set --ca-file" in processes.fedround(*fetch).stderr
    assert "there is no global model" in processes.fedround(*fetch, "--ca-file", authority.file, "--token", "ops").stderr
