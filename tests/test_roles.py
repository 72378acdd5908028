"""Roles: what unauthenticated clients, participants and operators reach on each port of real services, and browser headers."""

import base64
import json
import urllib.error
from pathlib import Path

import pytest

from support.federation import Answer, OldPlatform
from support.processes import Process, fedround, running, until

PARTICIPANT, OPERATOR = "participants-token", "operators-token"
TOKENS = {f"{role}_TOKEN": PARTICIPANT for role in ("COORDINATOR", "AGGREGATOR", "PARTICIPANT")}
OPS_TOKENS = {f"{role}_OPS_TOKEN": OPERATOR for role in ("COORDINATOR", "AGGREGATOR", "PARTICIPANT")}
PROBES = ("/livez", "/readyz")
SHOWN = ("/status", "/metrics")
PRIVATE = {"COORDINATOR_OPS_PORT": ("/", "/events"), "AGGREGATOR_OPS_PORT": ("/model",)}
BOTH = ("COORDINATOR_OPS_PORT", "AGGREGATOR_OPS_PORT")


def asked(process: Process, port: str, path: str, token: str | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, detail of a refusal, and headers by lower-case name."""
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with process.open(port, path, **headers) as answer:
            return answer.status, "", {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            found = {name.lower(): value for name, value in error.headers.items()}
            return error.code, json.load(error).get("detail", ""), found


def statuses(process: Process, token: str | None = None) -> dict[str, set[int]]:
    """Return the statuses of the endpoints of each kind on both ops ports."""
    found: dict[str, set[int]] = {"probes": set(), "shown": set(), "private": set()}
    for port in BOTH:
        for kind, paths in {"probes": PROBES, "shown": SHOWN, "private": PRIVATE[port]}.items():
            found[kind] |= {asked(process, port, path, token)[0] for path in paths}
    return found


def test_a_platform_without_tokens_shows_everything() -> None:
    with running("platform") as platform:
        platform.said("in contact with the aggregator")
        assert statuses(platform) == {"probes": {200}, "shown": {200}, "private": {200, 404}}, "404: there is no model yet"


def test_with_tokens_for_participants_only_private_endpoints_are_closed() -> None:
    with running("platform", **TOKENS) as platform:
        platform.said("in contact with the aggregator")
        for token in (None, PARTICIPANT):
            assert statuses(platform, token) == {"probes": {200}, "shown": {200}, "private": {403}}
        assert "set COORDINATOR_OPS_TOKEN" in asked(platform, "COORDINATOR_OPS_PORT", "/")[1]
        assert "set AGGREGATOR_OPS_TOKEN" in asked(platform, "AGGREGATOR_OPS_PORT", "/model")[1]


@pytest.mark.parametrize("participants", [{}, TOKENS], ids=["open", "with tokens"])
def test_the_operators_port_accepts_only_the_operators_token(participants: dict[str, str]) -> None:
    with running("platform", **participants, **OPS_TOKENS) as platform:
        platform.said("in contact with the aggregator")
        for token in (None, PARTICIPANT, "wrong"):
            assert statuses(platform, token) == {"probes": {200}, "shown": {401}, "private": {401}}
        assert statuses(platform, OPERATOR) == {"probes": {200}, "shown": {200}, "private": {200, 404}}
        assert "COORDINATOR_OPS_TOKEN" in asked(platform, "COORDINATOR_OPS_PORT", "/status")[1]
        assert "AGGREGATOR_OPS_TOKEN" in asked(platform, "AGGREGATOR_OPS_PORT", "/status")[1]
        password = f"Basic {base64.b64encode(f'me:{OPERATOR}'.encode()).decode()}"
        assert asked(platform, "COORDINATOR_OPS_PORT", "/", Authorization=password)[0] == 200


def test_the_operators_token_opens_no_endpoint_of_participants() -> None:
    with running("platform", **TOKENS, **OPS_TOKENS) as platform:
        for port, path in {"COORDINATOR_PORT": "/rendez_vous", "AGGREGATOR_PORT": "/id/token"}.items():
            status, detail, _ = asked(platform, port, path, OPERATOR)
            assert (status, "participant's token" in detail) == (401, True)
        assert asked(platform, "COORDINATOR_PORT", "/rendez_vous", PARTICIPANT)[0] == 200


def test_only_events_do_not_make_a_browser_ask_for_a_password() -> None:
    with running("platform", **OPS_TOKENS) as platform:
        for port in BOTH:
            for path in (*SHOWN, *PRIVATE[port]):
                challenge = asked(platform, port, path)[2]["www-authenticate"]
                assert challenge == ("Bearer" if path == "/events" else 'Basic realm="fedround"')


@pytest.mark.parametrize("role", ["coordinator", "aggregator", "participant"])
def test_operators_and_participants_cannot_have_the_same_token(role: str) -> None:
    name = role.upper()
    same = {f"{name}_TOKEN": "the-same", f"{name}_OPS_TOKEN": "the-same"}
    done = fedround(role, PARTICIPANT_COORDINATOR_URL="http://here", PARTICIPANT_CLASS="a:B", **same)
    assert done.returncode == 78
    assert f"{name}_OPS_TOKEN (--ops-token): participants have the same token" in done.stderr
    assert "the-same" not in done.stderr


def test_no_participant_can_have_the_operators_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"anna {OPERATOR}\n")
    done = fedround("coordinator", COORDINATOR_TOKENS_FILE=str(tokens), COORDINATOR_OPS_TOKEN=OPERATOR)
    assert done.returncode == 78
    assert "line 1: the token of anna is the operators' token" in done.stderr
    assert OPERATOR not in done.stderr


def test_a_participant_shows_its_own_weights_to_operators_with_a_token_only() -> None:
    silo = {"PARTICIPANT_CLASS": "support.silos:Plus1", "PARTICIPANT_AFTER_FINISH": "wait"}
    with running("platform", COORDINATOR_ROUNDS="2", COORDINATOR_MIN_CLIENTS="2") as platform:
        silo["PARTICIPANT_COORDINATOR_URL"] = platform.url("COORDINATOR_PORT")
        guarded = {"PARTICIPANT_OPS_TOKEN": OPERATOR}
        with running("participant", **silo) as open_one, running("participant", **silo, **guarded) as guarded_one:
            platform.said("training complete")
            shown = 'fedround_participant_weight_value{index="0",source="%s"}'
            until(lambda: shown % "global" in open_one.get("PARTICIPANT_OPS_PORT", "/metrics").decode())
            assert shown % "local" not in open_one.get("PARTICIPANT_OPS_PORT", "/metrics").decode()
            assert {asked(guarded_one, "PARTICIPANT_OPS_PORT", path)[0] for path in SHOWN} == {401}
            assert {asked(guarded_one, "PARTICIPANT_OPS_PORT", path)[0] for path in PROBES} == {200}
            scraped = guarded_one.get("PARTICIPANT_OPS_PORT", "/metrics", Authorization=f"Bearer {OPERATOR}").decode()
            assert shown % "local" in scraped


def test_every_response_of_an_ops_port_has_security_headers() -> None:
    with running("platform", **OPS_TOKENS) as platform:
        for port in BOTH:
            for path in (*PROBES, *SHOWN, *PRIVATE[port], "/nowhere"):
                for token in (None, OPERATOR):
                    headers = asked(platform, port, path, token, Origin="https://x.example")[2]
                    assert headers["x-content-type-options"] == "nosniff"
                    assert headers["referrer-policy"] == "no-referrer"
                    assert headers["cache-control"] in ("no-store", "no-cache")
                    assert "default-src 'none'" in headers["content-security-policy"]
                    assert "frame-ancestors 'none'" in headers["content-security-policy"]
                    assert "access-control-allow-origin" not in headers


def test_only_pages_of_configured_origins_may_read_responses() -> None:
    page = "https://fl.example.org"
    ports = {"COORDINATOR_PORT": "/rendez_vous", "AGGREGATOR_PORT": "/id/token"}
    with running("platform") as platform:
        for port, path in ports.items():
            assert "access-control-allow-origin" not in asked(platform, port, path, Origin=page)[2]
    allowed = {f"{role}_CORS_ORIGINS": f"http://other, {page}" for role in ("COORDINATOR", "AGGREGATOR")}
    with running("platform", **allowed) as platform:
        for port, path in ports.items():
            assert asked(platform, port, path, Origin=page)[2]["access-control-allow-origin"] == page
            assert "access-control-allow-origin" not in asked(platform, port, path, Origin="https://evil.example")[2]


@pytest.mark.parametrize("text", ["fl.example.org", "https://fl.example.org/", "HTTPS://X", "https://a https://b"])
def test_an_invalid_origin_in_the_settings_is_refused(text: str) -> None:
    done = fedround("coordinator", COORDINATOR_CORS_ORIGINS=text)
    assert done.returncode == 78
    assert "COORDINATOR_CORS_ORIGINS (--cors-origins): write origins as browsers send them" in done.stderr


def test_texts_of_a_hostile_coordinator_forge_no_log_line() -> None:
    detail = "no\n2026-01-01 00:00:00.000 INFO    in contact with the coordinator\x1b[2J\u202e"
    refusal = Answer(403, json.dumps({"title": "Forbidden", "status": 403, "detail": detail}).encode(), PROBLEM)
    with OldPlatform(rendez_vous=[refusal]) as hostile:
        silo = {"PARTICIPANT_CLASS": "support.silos:Plus1", "PARTICIPANT_COORDINATOR_URL": hostile.url}
        with running("participant", **silo, PARTICIPANT_LOG_FORMAT="text") as participant:
            participant.said("no contact with the coordinator")
            reasons = participant.probe("/readyz")[1]["reasons"]
        lines = participant.log.splitlines()
        assert all(line.isprintable() for line in [*lines, *reasons])
        assert not any(line.startswith("2026-01-01") for line in lines)


PROBLEM = {"Content-Type": "application/problem+json"}

# The command line


def test_the_operators_token_is_read_from_flag_or_variables(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(OPERATOR + "\n")
    with running("platform", COORDINATOR_OPS_TOKEN=OPERATOR) as platform:
        url = platform.url("COORDINATOR_OPS_PORT")
        port = {"COORDINATOR_OPS_PORT": platform.ports["COORDINATOR_OPS_PORT"]}
        assert fedround("status", "--from", url, "--token", OPERATOR).returncode == 0
        assert fedround("status", "--from", url, FEDROUND_TOKEN=OPERATOR).returncode == 0
        assert fedround("status", "coordinator", **port, COORDINATOR_OPS_TOKEN=OPERATOR).returncode == 0
        assert fedround("status", "coordinator", **port, COORDINATOR_OPS_TOKEN_FILE=str(file)).returncode == 0
        for arguments, needed in {
            ("status", "--from", url): "the operators' token of the service by --token, or set FEDROUND_TOKEN",
            ("status", "coordinator"): "the coordinator by --token, or set COORDINATOR_OPS_TOKEN or FEDROUND_TOKEN",
        }.items():
            done = fedround(*arguments, **port, PARTICIPANT_OPS_TOKEN=OPERATOR)
            assert done.returncode == 1
            assert needed in done.stderr
        assert fedround("healthcheck", "coordinator", **port).returncode == 0


def test_an_invalid_token_or_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert "visible ASCII" in fedround("status", "--token", "a b").stderr
    done = fedround("status", "aggregator", AGGREGATOR_OPS_TOKEN_FILE=str(tmp_path / "none"))
    assert (done.returncode, "AGGREGATOR_OPS_TOKEN_FILE: " in done.stderr) == (1, True)
