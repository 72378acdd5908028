"""Texts of peers are never printed raw: they forge no log line and control no terminal."""

import json
import re

import pytest

from hostile.client import Client, ask
from support.federation import Answer, OldPlatform, say
from support.processes import LOOPBACK, fedround, running
from support.updates import update

EVIL = "\x1b[2J\x9b2J\r\n2026-01-01 00:00:00 ERROR FORGED \u202e\u2028\x00\x07"
RAW = EVIL.encode("latin-1", "ignore").replace(b"\r\n", b"").replace(b"\x00", b"")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text: str) -> None:
    """Check that each line is ours, and moves no cursor."""
    assert text
    assert CONTROL.search(text) is None
    assert not re.search(r"^\S* ?\S* ?ERROR FORGED", text, re.MULTILINE)


PROBLEM = json.dumps({"title": EVIL, "status": 400, "detail": EVIL}).encode()
ANSWERS = {
    "the detail of a refusal": {"rendez_vous": [Answer(400, PROBLEM, {"Content-Type": "application/problem+json"})]},
    "the detail of a refused token": {"rendez_vous": [Answer(401, PROBLEM, {"Content-Type": "application/problem+json"})]},
    "the detail of a refused upload": {"upload": [Answer(422, PROBLEM, {"Content-Type": "application/problem+json"})]},
    "a page instead of JSON": {"rendez_vous": [Answer(200, EVIL.encode())]},
    "a state": {"heartbeat": [say({"state": EVIL, "round": None})]},
    "the aggregator's URL": {"start_training": [say({"url": f"http://{EVIL}/", "token": "2" * 32, "ok": True})]},
    "the outcome of an update": {"upload": [Answer(200, headers={"Fedround-Update": "\x1b[2J FORGED"})]},
    "a redirect": {"rendez_vous": [Answer(302, headers={"Location": "http://\x1b[2J FORGED/"})]},
    "Retry-After": {"rendez_vous": [Answer(503, headers={"Retry-After": "\x1b[2J FORGED"})]},
    "a model": {"download": [Answer(200, RAW)]},
    "the etag of a model": {"download": [Answer(200, headers={"ETag": '"\x1b[2J FORGED"'})]},
}


@pytest.mark.parametrize(("name", "format"), [*((name, "text") for name in ANSWERS), ("the detail of a refusal", "json")])
def test_texts_of_a_platform_are_escaped_in_the_log_of_a_participant(name: str, format: str) -> None:
    script = {"heartbeat": [say({"state": "round", "round": 0})], **ANSWERS[name]}
    with OldPlatform(**script) as platform:
        settings = {
            "PARTICIPANT_COORDINATOR_URL": platform.url,
            "PARTICIPANT_CLASS": "support.known_answer:KnownAnswer",
            "PARTICIPANT_OPTIONS": '{"k": 0}',
            "PARTICIPANT_LOG_FORMAT": format,
            "PARTICIPANT_HEARTBEAT_PERIOD": "0.1s",
            "PARTICIPANT_MAX_FAILURES": "2",
            "PARTICIPANT_DRAIN_TIMEOUT": "0.5s",
        }
        with running("participant", **settings) as silo:
            platform.seen(next(iter(ANSWERS[name])), 1)
            silo.end()
            assert_harmless(silo.log)


@pytest.mark.parametrize("format", ["text", "json"])
def test_texts_of_a_participant_are_escaped_in_log_and_status_of_the_platform(format: str) -> None:
    formats = {"COORDINATOR_LOG_FORMAT": format, "AGGREGATOR_LOG_FORMAT": format}
    with running("platform", **formats) as platform:
        ports = int(platform.ports["COORDINATOR_PORT"]), int(platform.ports["AGGREGATOR_PORT"])
        evil = RAW.decode("latin-1")
        one = Client(*ports, name="mallory")
        one.register()
        assert one.selected()
        one.upload(update(1, 1.0), {"Fedround-Metrics": json.dumps({EVIL: 1.0, "loss": EVIL})})
        one.upload(b"\x00\x00\x00\x01" + RAW, {"Fedround-Metrics": evil})
        for port in (*ports, *(int(platform.ports[name]) for name in platform.ports if name.endswith("OPS_PORT"))):
            for headers in (
                {"Fedround-Participant": evil},
                {"Fedround-Ordinal": evil},
                {"Host": evil},
                {"traceparent": evil},
                {"Authorization": evil},
            ):
                ask(port, "GET", "/rendez_vous", headers=headers)
            ask(port, "GET", f"/heartbeat/{one.id}", headers={"Prefer": f"wait={evil}"})
            ask(port, "GET", "/%1b%5b2J%0d%0aERROR%20FORGED")
            ask(port, "FORGED", "/")
        shown = fedround("status", "coordinator", **LOOPBACK, **platform.ports)
        assert shown.returncode == 0
        assert_harmless(shown.stdout)
        platform.end()
        assert_harmless(platform.log)
