"""The internal secret: created once, readable for both services only; and which files are refused."""

import os
import stat
import threading
import urllib.error
from pathlib import Path

import pytest

from fedround.common import secret
from fedround.common.secret import SecretFile, SecretHolder
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.errors import ConfigurationError
from support.processes import Process, beside, fedround, running

GOOD = "0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default path of the secret."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "fedround" / "internal-secret"


def refused(process: Process, token: str = "") -> int:
    """Return the status of a call of the books."""
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with process.open("AGGREGATOR_INTERNAL_PORT", "/books/ledger", **headers) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_both_services_find_the_same_secret_and_other_users_cannot_read_it(home: Path) -> None:
    with running("aggregator") as aggregator, running("coordinator", **beside(aggregator)) as coordinator:
        coordinator.said("in contact with the aggregator")
        assert stat.S_IMODE(home.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
        made = home.read_text().strip()
        assert len(made) > 40
        assert [refused(aggregator, token) for token in ("", "wrong", made)] == [401, 401, 200]
    assert made not in aggregator.log + coordinator.log


def test_a_coordinator_that_starts_first_creates_the_secret(home: Path) -> None:
    settings = {"COORDINATOR_AGGREGATOR_INTERNAL_URL": "http://127.0.0.1:1"}
    with running("coordinator", **settings) as coordinator:
        coordinator.said("no contact with the aggregator")
        made = home.read_text()
        with running("aggregator") as aggregator:
            assert refused(aggregator, made.strip()) == 200
        assert home.read_text() == made


def test_a_replaced_secret_is_used_by_both_services_without_a_restart(home: Path) -> None:
    with running("aggregator") as aggregator, running("coordinator", **beside(aggregator)) as coordinator:
        coordinator.said("in contact with the aggregator")
        former = home.read_text().strip()
        home.unlink()  # like a cleanup of temporary files
        assert refused(aggregator, former) == 200
        with running("coordinator", **beside(aggregator)) as another:
            another.said("in contact with the aggregator")
            assert home.read_text().strip() != former
            assert refused(aggregator, former) == 401


def test_a_missing_secret_file_is_created(tmp_path: Path) -> None:
    named = {"FEDROUND_INTERNAL_SECRET_FILE": str(tmp_path / "secret"), "AGGREGATOR_INTERNAL_BIND": "0.0.0.0"}  # noqa: S104
    with running("aggregator", **named) as aggregator, running("coordinator", **beside(aggregator), **named) as coordinator:
        coordinator.said("in contact with the aggregator")
        assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
        assert refused(aggregator) == 401


def test_services_that_start_simultaneously_agree_on_the_secret(tmp_path: Path) -> None:
    found: list[str] = []
    ready = threading.Barrier(16)

    def start() -> None:
        ready.wait()
        found.append(SecretFile(tmp_path / "own" / "secret", private=True)())

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        ("", 0o600, "16 or more visible ASCII characters"),
        ("too-short", 0o600, "16 or more"),
        ("a secret with blanks in it", 0o600, "visible ASCII"),
        ("s\u00e9cret-0123456789", 0o600, "visible ASCII"),
        ("x" * 1025, 0o600, "16 or more"),
        (GOOD, 0o644, "other users have access to it: chmod 600"),
    ],
)
def test_an_invalid_secret_file_exits_with_78(home: Path, content: str, mode: int, complaint: str) -> None:
    home.parent.mkdir(0o700)
    home.write_text(content)
    home.chmod(mode)
    for service in ("aggregator", "coordinator"):
        done = fedround(service, AGGREGATOR_INTERNAL_PORT="0", AGGREGATOR_PORT="0", AGGREGATOR_OPS_PORT="0")
        assert done.returncode == 78
        assert complaint in done.stderr
        assert "FEDROUND_INTERNAL_SECRET" in done.stderr
        assert "Traceback" not in done.stderr
        assert GOOD not in done.stderr
    assert home.read_text() == content


def test_a_link_that_others_may_have_created_is_not_followed(home: Path, tmp_path: Path) -> None:
    home.parent.mkdir(0o700)
    (tmp_path / "mine").write_text(GOOD)
    home.symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigurationError, match="cannot be read: Too many levels of symbolic links"):
        SecretFile(home, private=True)
    home.unlink()
    home.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError):
        SecretFile(home, private=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_of_other_users_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "fedround"
    place.mkdir(0o755)
    with pytest.raises(ConfigurationError, match="must be a private directory of this user"):
        SecretFile(place / "secret", private=True)
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="must be a private directory of this user"):
        SecretFile(place / "secret", private=True)
    place.unlink()
    place.mkdir(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="must be a private directory of this user"):
        SecretFile(place / "secret", private=True)


def test_a_file_of_another_user_is_refused_unless_it_is_named_and_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(GOOD + "\n")
    file.chmod(0o644)
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner == 0:
        assert SecretFile(file, private=False)() == GOOD
        os.chown(file, 54321, -1)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        SecretFile(file, private=False)


def test_a_file_that_others_can_write_is_refused_and_links_of_kubernetes_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text(GOOD + "\n")
    (tmp_path / "secret").symlink_to("data")
    (tmp_path / "data").chmod(0o644)
    assert SecretFile(tmp_path / "secret", private=False)() == GOOD
    (tmp_path / "data").chmod(0o620)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        SecretFile(tmp_path / "secret", private=False)


def test_if_no_file_can_be_created_the_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"cannot write the internal secret to .*: No such file or directory; set FEDROUND"
    ):
        SecretFile(tmp_path / "nowhere" / "secret", private=False)
    with pytest.raises(ConfigurationError, match=r"cannot create the directory .*: No such file or directory; set FEDROUND"):
        SecretFile(tmp_path / "nowhere" / "own" / "secret", private=True)


def test_a_file_that_becomes_invalid_is_logged_once_and_the_former_secret_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secret"
    found = SecretFile(file, private=False)
    former = found()
    file.write_text("short")
    assert [found() for _ in range(3)] == [former] * 3
    assert caplog.text.count("the previous secret stays active") == 1
    file.write_text(GOOD)
    assert SecretHolder(found).owner(GOOD) == ""
    assert SecretHolder(found).owner(former) is None


def test_a_secret_and_its_file_together_are_refused(tmp_path: Path) -> None:
    done = fedround("aggregator", FEDROUND_INTERNAL_SECRET=GOOD, FEDROUND_INTERNAL_SECRET_FILE=str(tmp_path / "secret"))
    assert done.returncode == 78
    assert "FEDROUND_INTERNAL_SECRET_FILE (--internal-secret-file): the secret itself is set too" in done.stderr


def test_the_generated_secret_is_sent_only_to_loopback(home: Path) -> None:
    there = CoordinatorSettings.model_validate({"aggregator_internal_url": "http://aggregator.example.org:7082"})
    assert secret.of_coordinator(there)() is None
    assert not home.exists()
    here = CoordinatorSettings.model_validate({"aggregator_internal_url": "http://[::1]:7082"})
    assert secret.of_coordinator(here)() == secret.of_aggregator(AggregatorSettings())() == home.read_text().strip()


def test_a_platform_in_one_process_creates_no_secret(home: Path) -> None:
    with running("platform") as platform:
        platform.said("in contact with the aggregator")
    assert not home.parent.exists()
