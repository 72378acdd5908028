"""Tokens: their owners, a tokens file that changes, and participants with a wrong token."""

import logging
import os
import resource
import threading
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedround
from fedround.common import files
from fedround.errors import ConfigurationError
from fedround.http.tokens import NO_TOKENS, Tokens
from support.federation import our_platform
from support.processes import joining, running, until
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
    """As Kubernetes and editors do it: another file with the same name."""
    other = path.with_name("other")
    other.write_text(text)
    other.replace(path)


def test_without_tokens_no_token_is_required() -> None:
    assert not NO_TOKENS.required


def test_a_shared_token_proves_no_identity() -> None:
    tokens = Tokens("secret")
    assert tokens.required
    assert [tokens.owner(given) for given in ("secret", "", "Secret", "secret ", "sécret")] == ["", None, None, None, None]


def test_a_token_in_the_file_proves_its_identity(file: Path) -> None:
    tokens = Tokens("secret", file)
    assert [tokens.owner(given) for given in ("anna's-token", "berta's-token", "secret", "anna", "#")] == [
        "anna",
        "berta",
        "",
        None,
        None,
    ]
    assert Tokens(None, file).owner("secret") is None


def test_an_empty_file_refuses_every_token(file: Path) -> None:
    file.write_text("")
    tokens = Tokens(None, file)
    assert tokens.required
    assert tokens.owner("") is None


@pytest.mark.parametrize("text", ["berta other\n", "berta's-token berta's-token\nberta anna's-token\nanna berta's-token\n"])
def test_a_file_that_changes_is_read_again(file: Path, text: str) -> None:
    tokens = Tokens(None, file)
    replace(file, "anna new\n")
    assert [tokens.owner(given) for given in ("anna's-token", "new", "berta's-token")] == [None, "anna", None]


def test_a_change_of_the_same_length_is_noticed(file: Path) -> None:
    tokens = Tokens(None, file)
    file.write_text(FILE.replace("berta's-token", "berta's-tokeN"))
    os.utime(file, (1, 1))  # whatever the resolution of the clock
    assert [tokens.owner(f"berta's-toke{last}") for last in "nN"] == [None, "berta"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("anna one two\n", "line 1: write a participant's name"),
        ("Åse one\n", "line 1: a name has 1 to 63 of the characters a-z, 0-9, '.' and '-'"),
        ("acme_inc one\n", "line 1: a name has 1 to 63 of the characters"),
        ("\nanna\n", "line 2: write"),
        ("Anna token\n", "line 1: a name has"),
        ("anna tok\xe9n\n", "line 1: write"),
        ("anna same\nberta same\n", "line 2: the token of berta also belongs to another participant"),
    ],
)
def test_an_invalid_file_prevents_the_start_and_is_ignored_later(
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


def test_a_missing_file_prevents_the_start_and_is_awaited_later(file: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_token_removed_while_the_file_was_unreadable_is_refused_afterwards(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(None, file)
    replace(file, "berta berta's-token\n")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # no file can be opened
    try:
        assert [tokens.owner("anna's-token") for _ in range(2)] == ["anna", "anna"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caplog.text.count("Too many open files; the previous tokens stay active") == 1
    assert tokens.owner("anna's-token") is None


@pytest.mark.parametrize("cut", range(len("anna tok1secret\n")))
def test_no_part_of_a_token_is_accepted_while_a_file_is_written(file: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.tokens.SETTLED", 3600.0)
    text = "anna tok1secret\n"
    tokens = Tokens(None, file)
    file.write_text(text[:cut])
    for end in range(cut + 1):
        assert tokens.owner(text[:end].rpartition(" ")[2]) is None
    assert tokens.owner("anna's-token") == "anna", "the previous tokens stay active until it is complete"
    file.write_text(text)
    assert [tokens.owner(given) for given in ("tok1secret", "anna's-token")] == ["anna", None]


@pytest.mark.parametrize(("text", "owner"), [("anna tok1secret", "anna"), ("", None)])
def test_a_file_without_a_final_newline_counts_after_a_while(
    file: Path, text: str, owner: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kubernetes makes it from a literal."""
    monkeypatch.setattr("fedround.http.tokens.SETTLED", 0.2)
    tokens = Tokens(None, file)
    file.write_text(text)
    until(lambda: tokens.owner("anna's-token") is None)
    assert tokens.owner("tok1secret") == owner
    again = Tokens(None, file)
    assert again.owner("tok1secret") == owner


def test_a_change_within_one_clock_tick_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second write leaves size, inode and times unchanged."""
    stamp = files.stamp(file.stat())
    monkeypatch.setattr(files, "stamp", lambda found: stamp)
    tokens = Tokens(None, file)
    file.write_text(FILE.replace("berta's-token", "berta's-tokeN"))
    assert [tokens.owner(f"berta's-toke{last}") for last in "nN"] == [None, "berta"]


def test_a_file_that_changes_while_it_is_read_is_ignored(file: Path) -> None:
    """Another process alternates between two sets of tokens. No reader sees a mixture."""
    sets = ["".join(f"silo-{n} {kind}-{n}\n" for n in range(3000)) for kind in ("one", "two")]
    file.write_text(sets[0])
    tokens = Tokens(None, file)
    stop = threading.Event()

    def rewrite() -> None:
        for text in cycle(sets):
            if stop.is_set():
                return
            replace(file, text)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(50):
            tokens.owner("")
            known = set(tokens._names.values())
            assert len(tokens._names) == len(known) == 3000
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffanna anna's-token\nberta berta's-token\n",
        "anna anna's-token\r\nberta berta's-token\r\n",
        "\tanna \t anna's-token \n\n  # berta gone\nberta\tberta's-token\t\n",
    ],
)
def test_files_written_by_editors_are_read(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    assert [Tokens(None, file).owner(f"{name}'s-token") for name in ("anna", "berta")] == ["anna", "berta"]


@pytest.mark.parametrize("separator", ["\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r", "\xa0"])
def test_only_newlines_end_a_line_and_only_spaces_a_word(file: Path, separator: str) -> None:
    for text in (f"anna{separator}token\n", f"anna token{separator}berta other\n", f"anna to{separator}ken\n"):
        file.write_text(text, newline="")
        with pytest.raises(ConfigurationError, match="line 1: write a participant's name"):
            Tokens(None, file)


def test_a_file_in_utf_16_is_invalid(file: Path) -> None:
    file.write_text(FILE, encoding="utf-16")
    with pytest.raises(ConfigurationError, match="line 1: write"):
        Tokens(None, file)


def test_a_name_may_have_several_tokens_so_that_one_can_be_replaced(file: Path) -> None:
    file.write_text("anna former\nanna new\n")
    assert [Tokens(None, file).owner(given) for given in ("former", "new")] == ["anna", "anna"]


def test_thousands_of_tokens_are_accepted_and_the_size_of_a_file_is_limited(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("".join(f"silo-{n} token-{n}\n" for n in range(10_000)))
    assert Tokens(None, file).owner("token-9999") == "silo-9999"
    monkeypatch.setattr("fedround.http.tokens.MAX_FILE", 1000)
    with pytest.raises(ConfigurationError, match="more than 1000 bytes"):
        Tokens(None, file)


@pytest.mark.timeout(10)
def test_a_path_that_is_not_a_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        Tokens(None, tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        Tokens(None, tmp_path)


@given(content=st.binary(max_size=300))
def test_any_content_is_tokens_or_an_error_without_tokens(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "tokens-of-hypothesis"
    file.write_bytes(content + b"\n")
    told = f"{file}, line 1: "
    with suppress(ConfigurationError):
        assert Tokens(None, file).owner("") is None
        return
    with pytest.raises(
        ConfigurationError, match=r"line \d+: (write a participant's name|a name has|the token of [a-z0-9.-]+ (is|also))"
    ) as refused:
        Tokens(None, file)
    assert len(str(refused.value)) < len(told) + 150
    assert str(refused.value).isprintable()


def test_a_participant_with_an_individual_token_has_its_name(file: Path) -> None:
    with our_platform(tokens_file=file, rounds=1) as p:
        fedround.run_participant(Plus1(), p.url, token="berta's-token", name="anna", heartbeat_period=0.05)
        assert [shown["name"] for shown in p.status()["participants"]] == ["berta"]


def test_a_wrong_token_is_logged_retried_rarely_and_replaced_without_a_restart(file: Path, tmp_path: Path) -> None:
    services = {"COORDINATOR_TOKENS_FILE": str(file), "AGGREGATOR_TOKENS_FILE": str(file)}
    with running("platform", COORDINATOR_ROUNDS="1", **services) as platform:
        with running("participant", **joining(platform, "silos:Plus1", PARTICIPANT_TOKEN="carla's-token")) as carla:
            carla.said("unknown token")
            status, answer = carla.probe("/readyz")
            assert status == 503
            assert "401" in " ".join(answer["reasons"])
            file.write_text(FILE + "carla carla's-token\n")
            carla.said("^finished")
            assert carla.wait() == 0
            assert carla.log.count("unknown token") < 4
        assert platform.end() == 0
        assert "carla's-token" not in carla.log + platform.log


@pytest.mark.parametrize(("settings", "warned"), [({}, True), ({"TOKEN": "secret"}, False), ({"BIND": "127.0.0.1"}, False)])
def test_a_service_without_tokens_that_listens_publicly_logs_a_warning(settings: dict[str, str], warned: bool) -> None:
    given = {"BIND": "0.0.0.0"} | settings  # noqa: S104
    services = {f"{role}_{name}": value for role in ("COORDINATOR", "AGGREGATOR") for name, value in given.items()}
    with running("platform", **services) as platform:
        assert platform.end() == 0
        for role in ("coordinator", "aggregator"):
            warning = f"any client that reaches the {role} may take part: set {role.upper()}_TOKEN or {role.upper()}_TOKENS_FILE"
            assert (warning in platform.log) == warned
