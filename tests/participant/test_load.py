import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedround.errors import ConfigurationError, ParticipantError
from fedround.participant.load import load_participant

MODULE = """
import fedround

class Good(fedround.NumPyParticipant):
    def __init__(self, *, epochs=1) -> None:
        if epochs == 0:
            raise ZeroDivisionError("no epochs")
        self.epochs = epochs

    def train_round(self, training_input): ...

class Outer:
    class Inner(Good): ...

class Unfinished(fedround.NumPyParticipant): ...

class NoParticipant: ...

a_function = print
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "silo.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / "failing.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in ("silo", "broken", "failing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "options"), [("silo:Good", {"epochs": 3}), ("silo:Outer.Inner", {"epochs": 3})])
def test_a_class_in_the_working_directory_is_created_with_its_options(name: str, options: dict[str, Any]) -> None:
    participant: Any = load_participant(name, options)
    assert participant.epochs == 3


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere:Good", f"there is no module nowhere, neither in {os.sep}"),
        ("silo.deeper:Good", "there is no module silo.deeper"),
        ("silo:Missing", "silo has no Missing"),
        ("silo:Godo", "silo has no Godo: did you mean Good?"),
        ("silo:Unfinished", "silo:Unfinished does not implement train_round"),
        ("silo:NoParticipant", "not a subclass of fedround.ParticipantABC"),
        ("silo:a_function", "not a subclass of fedround.ParticipantABC"),
    ],
)
def test_an_invalid_class_is_a_configuration_error(name: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_participant(name, {})
    assert str(raised.value).startswith("PARTICIPANT_CLASS (--class): ")
    assert complaint in str(raised.value)


def test_unknown_options_of_the_class_are_a_configuration_error() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"PARTICIPANT_OPTIONS \(--options\): silo:Good takes other arguments, \(\*, epochs=1\): .* 'epoch'",
    ):
        load_participant("silo:Good", {"epoch": 1})


@pytest.mark.parametrize(
    ("name", "options", "cause"),
    [
        ("broken:Good", {}, ModuleNotFoundError),
        ("failing:Good", {}, ZeroDivisionError),
        ("silo:Good", {"epochs": 0}, ZeroDivisionError),
    ],
)
def test_an_exception_of_the_users_module_is_shown(name: str, options: dict[str, Any], cause: type[Exception]) -> None:
    with pytest.raises(ParticipantError) as raised:
        load_participant(name, options)
    assert isinstance(raised.value.__cause__, cause)
    assert str(raised.value.__cause__) in str(raised.value)
