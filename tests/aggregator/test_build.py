"""The settings that build an aggregator, its initial model, and its directories."""

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround.aggregator import app
from fedround.aggregator.build import build
from fedround.aggregator.store import ModelStore
from fedround.common.durable import Directory
from fedround.common.settings import AggregatorSettings
from fedround.errors import ConfigurationError
from fedround.events import Observers
from fedround.observability.health import Health, running
from support.aggregating import trained
from support.updates import npy


def settings(**values: Any) -> AggregatorSettings:
    return AggregatorSettings(bind="127.0.0.1", port=0, internal_port=0, ops_port=0, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spool_dir": "/nowhere"}, "AGGREGATOR_SPOOL_DIR"),
        ({"strategy": "unheard_of"}, "AGGREGATOR_STRATEGY"),
        ({"strategy": "builtins:str"}, "builtins:str has neither `fold` and `result` nor `combine`"),
    ],
)
def test_unusable_settings_are_a_configuration_error(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(settings(**values), Observers())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weighted_average", '{"no": "such"}', "unexpected keyword argument 'no'"),
        ("trimmed_mean", '{"trim": 0.5}', "trim .* must be at least 0 and less than 0.5"),
        ("krum", {"byzantine": -1}, "byzantine must be a whole number of at least 0, not -1"),
        ("krum", {"byzantine": 0.5}, "byzantine must be a whole number"),
        ("krum", {"byzantine": True}, "byzantine must be a whole number"),
        ("krum", {"keep": 1}, "unexpected keyword argument 'keep'"),
        ("multi_krum", {"keep": 0}, "keep must be a whole number of at least 1, not 0"),
        ("fedavgm", {"server_momentum": 1.0}, "server_momentum must be at least 0 and less than 1, not 1.0"),
        ("fedavgm", {"server_learning_rate": 0}, "server_learning_rate must be a positive number, not 0"),
        ("fedadam", {"beta_1": -0.1}, "beta_1 must be at least 0"),
        ("fedadam", {"beta_2": float("nan")}, "beta_2 must be at least 0"),
        ("fedadam", {"bias_correction": "false"}, "bias_correction must be true or false, not 'false'"),
        ("fedyogi", {"eta": float("inf")}, "eta must be a positive number"),
        ("fedadagrad", {"tau": 0}, "tau must be a positive number"),
        ("fedadagrad", {"beta_1": 0.9}, "unexpected keyword argument 'beta_1'"),
    ],
)
def test_unusable_options_are_a_configuration_error(name: str, options: str | dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AGGREGATOR_STRATEGY_OPTIONS: {name} does not take them: .*{message}"):
        build(settings(strategy=name, strategy_options=options), Observers())


async def test_training_starts_from_the_initial_model_and_continues_from_the_newest(tmp_path: Path) -> None:
    initial = tmp_path / "initial.npy"
    np.save(initial, np.array([5.0, 6.0], "<f4"))
    disk = Directory(tmp_path)
    given = settings(initial_model=initial)
    first = build(given, Observers(), disk).model
    assert first is not None
    assert (first.round, list(first.tensors[0])) == (None, [5, 6])
    await trained(3, store=ModelStore(disk))
    again = build(given, Observers(), disk).model
    assert again is not None
    assert (again.round, list(again.tensors[0])) == (3, [3, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"nonsense", "neither an .npy array nor safetensors"),
        (npy(np.ones(1000, "|i1")), r"more than 7999 bytes \(AGGREGATOR_MAX_MODEL_SIZE\)"),
    ],
)
def test_an_unusable_initial_model_is_a_configuration_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "initial.npy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"AGGREGATOR_INITIAL_MODEL=.*: .*{message}"):
        build(settings(initial_model=file, max_model_size=7999), Observers())


def test_an_initial_model_may_have_exactly_the_largest_size(tmp_path: Path) -> None:
    np.save(file := tmp_path / "initial.npy", np.ones(1000, "|i1"))
    build(settings(initial_model=file, max_model_size=8000), Observers())


@pytest.mark.parametrize("kind", ["spool", "data"])
async def test_an_unwritable_directory_makes_the_aggregator_unready_until_it_is_writable(kind: str, tmp_path: Path) -> None:
    directories = {name: tmp_path / name for name in ("spool", "data")}
    for directory in directories.values():
        directory.mkdir()

    class Telling(Health):
        looked = asyncio.Event()

        def fault(self, topic: str, reason: str) -> None:
            super().fault(topic, reason)
            self.looked.set()

        def clear(self, topic: str, *, within: float = math.inf) -> None:
            super().clear(topic, within=within)
            self.looked.set()

        async def until(self, reasons: list[str]) -> None:
            async with asyncio.timeout(20):
                while self.reasons != reasons:
                    self.looked.clear()
                    await self.looked.wait()

    health = Telling()
    values = {f"{name}_dir": str(directory) for name, directory in directories.items()}
    async with running(health, app.keep_checking(settings(**values), health, every=0.001)):
        directories[kind].rmdir()
        await health.until([f"the {kind} directory cannot be written: No such file or directory"])
        directories[kind].mkdir()
        await health.until([])
