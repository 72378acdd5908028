"""Tokens: whose they are, a file of them that changes, and participants that have the wrong one."""

import logging
import os
from pathlib import Path

import pytest

import fedround
from fedround.errors import ConfigurationError
from fedround.tokens import OPEN, Tokens
from support.federation import our_platform
from support.processes import running
from support.silos import Plus1

FILE = """\
# a hospital each
anna  anna's-token

berta berta's-token
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(FILE)
    return path


def replace(path: Path, text: str) -> None:
    """As Kubernetes and editors do: another file of that name."""
    other = path.with_name("other")
    other.write_text(text)
    other.replace(path)


def test_without_tokens_nobody_needs_one() -> None:
    assert not OPEN.needed


def test_a_shared_token_is_nobodys() -> None:
    tokens = Tokens("secret")
    assert tokens.needed
    assert [tokens.owner(given) for given in ("secret", "", "Secret", "secret ", "sécret")] == ["", None, None, None, None]


def test_a_token_in_the_file_says_whose_it_is(file: Path) -> None:
    tokens = Tokens("secret", file)
    assert [tokens.owner(given) for given in ("anna's-token", "berta's-token", "secret", "anna", "#")] == [
        "anna",
        "berta",
        "",
        None,
        None,
    ]
    assert Tokens(None, file).owner("secret") is None


def test_an_empty_file_lets_nobody_in(file: Path) -> None:
    file.write_text("")
    tokens = Tokens(None, file)
    assert tokens.needed
    assert tokens.owner("") is None


@pytest.mark.parametrize("text", ["berta other\n", "berta's-token berta's-token\nberta anna's-token\nanna berta's-token\n"])
def test_a_file_that_changes_is_read_again(file: Path, text: str) -> None:
    tokens = Tokens(None, file)
    replace(file, "anna new\n")
    assert [tokens.owner(given) for given in ("anna's-token", "new", "berta's-token")] == [None, "anna", None]


def test_a_change_in_place_is_seen_even_if_it_is_as_long(file: Path) -> None:
    tokens = Tokens(None, file)
    file.write_text(FILE.replace("berta's-token", "berta's-tokeN"))
    os.utime(file, (1, 1))  # whatever the clock's steps are
    assert [tokens.owner(f"berta's-toke{last}") for last in "nN"] == [None, "berta"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("anna one two\n", "line 1: write a participant's name"),
        ("\nanna\n", "line 2: write"),
        ("Anna token\n", "line 1: write"),
        ("anna tok\xe9n\n", "line 1: write"),
        ("anna same\nberta same\n", "line 2: the token of berta is somebody else's"),
    ],
)
def test_a_file_that_is_not_right_stops_the_start_and_changes_nothing_later(
    file: Path, text: str, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(None, file)
    replace(file, text)
    for _ in range(2):
        assert tokens.owner("anna's-token") == "anna"
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert complaint in told
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        Tokens(None, file)
    assert "tok" not in str(refused.value).replace("token", "").replace(str(file), "")


def test_a_file_that_is_gone_stops_the_start_and_is_awaited_later(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens(None, file)
    file.unlink()
    for _ in range(2):
        assert tokens.owner("anna's-token") == "anna"
    assert caplog.text.count("cannot be read") == 1
    file.write_text("anna new\n")
    assert tokens.owner("new") == "anna"
    file.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Tokens(None, file)


def test_who_has_a_token_of_its_own_is_called_by_its_name(file: Path) -> None:
    with our_platform(tokens_file=file, rounds=1) as p:
        fedround.run_participant(Plus1(), p.url, token="berta's-token", name="anna", heartbeat_period=0.05)
        assert [shown["name"] for shown in p.status()["participants"]] == ["berta"]


def test_a_wrong_token_is_told_tried_seldom_and_mended_without_a_restart(file: Path, tmp_path: Path) -> None:
    services = {"COORDINATOR_TOKENS_FILE": str(file), "AGGREGATOR_TOKENS_FILE": str(file)}
    with running("platform", COORDINATOR_ROUNDS="1", **services) as platform:
        participant = {
            "PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"),
            "PARTICIPANT_CLASS": "support.silos:Plus1",
            "PARTICIPANT_TOKEN": "carla's-token",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        with running("participant", **participant) as carla:
            carla.said("this token is not known here")
            status, answer = carla.probe("/readyz")
            assert status == 503
            assert "401" in " ".join(answer["reasons"])
            file.write_text(FILE + "carla carla's-token\n")
            carla.said("^finished")
            assert carla.wait() == 0
            assert carla.log.count("this token is not known here") < 4
        assert platform.end() == 0
        assert "carla's-token" not in carla.log + platform.log


@pytest.mark.parametrize(("settings", "warned"), [({}, True), ({"TOKEN": "secret"}, False), ({"BIND": "127.0.0.1"}, False)])
def test_a_service_that_is_open_to_other_machines_says_so(settings: dict[str, str], warned: bool) -> None:
    given = {"BIND": "0.0.0.0"} | settings  # noqa: S104
    services = {f"{role}_{name}": value for role in ("COORDINATOR", "AGGREGATOR") for name, value in given.items()}
    with running("platform", **services) as platform:
        assert platform.end() == 0
        for role in ("coordinator", "aggregator"):
            warning = f"whoever reaches the {role} may take part: set {role.upper()}_TOKEN or {role.upper()}_TOKENS_FILE"
            assert (warning in platform.log) == warned
