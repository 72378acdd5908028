"""Errors of the participant's code, and how they are reported."""

import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround
from fedround.errors import ParticipantError
from fedround.events import Observers
from fedround.participant.load import load_participant
from fedround.participant.round import Round, Shard
from fedround.participant.traces import traced
from fedround.participant.training import Training


class Mine(fedround.NumPyParticipant):
    def __init__(self, train: Callable[[Any], Any]) -> None:
        self._train = train

    def train_round(self, training_input: Any) -> Any:
        return self._train(training_input)


def failed(participant: fedround.ParticipantABC[Any, Any], model: bytes = b"") -> ParticipantError:
    with pytest.raises(ParticipantError) as raised:
        Training(participant, Observers())(Round(0, Shard(0, 1), lambda _figures: None), [bytearray(model)])
    return raised.value


def files(error: ParticipantError) -> list[str]:
    found = traced(error)
    assert found is not None
    return [Path(frame.filename).name for frame in traceback.extract_tb(found[2])]


def test_a_traceback_starts_with_the_users_code() -> None:
    assert files(failed(Mine(lambda _weights: 1 / 0))) == ["test_training.py", "test_training.py"]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (np.array([np.nan]), "check failed in round 0: NotFinite: weights: NaN in 1 of 1 elements: has training diverged?"),
        (np.array([{}]), "encode failed in round 0: WeightsError: dtype '|O' cannot be averaged"),
        (np.zeros(0), "encode failed in round 0: WrongWeights: shape (0,) holds no weights"),
        ({"a": np.array([{}])}, "encode failed in round 0: WrongWeights: a: dtype object cannot be averaged"),
        ({"a" * 1000: np.ones(1)}, "encode failed in round 0: WrongWeights: 'aaaa"),
    ],
)
def test_an_update_that_is_refused_has_no_traceback(weights: Any, text: str) -> None:
    error = failed(Mine(lambda _weights: (1, weights)))
    assert traced(error) is None
    assert str(error).startswith(text)


def test_a_method_that_takes_other_arguments_has_no_traceback() -> None:
    class Wrong(fedround.NumPyParticipant):
        def train_round(self) -> Any: ...  # type: ignore[override]

    error = failed(Wrong())
    assert traced(error) is None
    assert "takes 1 positional argument but 2 were given" in str(error)


def test_an_exception_without_a_text_is_described_by_its_class() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    def train(_weights: Any) -> Any:
        raise Mute

    assert str(failed(Mine(train))) == "train failed in round 0: Mute: <its text is not available>"


def test_the_traceback_of_a_failed_import_starts_with_the_users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import nowhere_to_be_found")
    (tmp_path / "misspelt.py").write_text("class X(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ParticipantError) as lacking:
        load_participant("lacking:X", {})
    assert files(lacking.value) == ["lacking.py"]
    with pytest.raises(ParticipantError) as misspelt:
        load_participant("misspelt:X", {})
    found = traced(misspelt.value)
    assert found is not None
    assert "class X(:" in "".join(traceback.format_exception(*found))
    assert found[2] is None


def test_an_error_in_fedround_has_its_whole_traceback() -> None:
    def mutated(_weights: Any) -> Any:
        queue = deque([1])
        iterator = iter(queue)
        queue.append(2)
        return iterator

    assert files(failed(Mine(mutated))) == ["training.py", "training.py", "abc.py", "abc.py"]


@pytest.mark.parametrize(
    ("train", "noted"),
    [(lambda weights: (1, weights + 1), True), (lambda weights: (1, weights[0]), True), (lambda _weights: 1 / 0, False)],
)
def test_using_none_as_a_model_is_explained(train: Callable[[Any], Any], noted: bool) -> None:
    assert str(failed(Mine(train))).endswith("(there is no global model yet)") is noted


def test_using_an_empty_model_as_an_array_is_explained() -> None:
    class Old(Mine):
        takes_buffers = False

        def deserialize_training_input(self, data: bytes) -> Any:
            return np.frombuffer(data)[0]

    assert str(failed(Old(lambda _weights: None))).endswith("(data is empty: there is no global model yet)")
