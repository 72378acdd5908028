"""An aggregator's service in this process, and calls of participants and coordinators."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from fedround.aggregator.build import build
from fedround.aggregator.running import Folded, Running
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import Strategy, WeightedAverage
from fedround.common.books import Admission, Entry, Open, Outcome
from fedround.common.durable import Disk
from fedround.common.settings import AggregatorSettings
from fedround.common.wire import UpdateOutcome
from fedround.events import Fact, Observer, Observers
from fedround.tensors.weights import Array, Layout, Spec, Weights, encode_update
from support.updates import update

ANNA, BERT, CARL = "aaaaaaaa-0000", "bbbbbbbb-0000", "cccccccc-0000"


def service(
    strategy: Callable[[Spec], Strategy] = WeightedAverage,
    *,
    begin: Callable[[Layout], Running] | None = None,
    patience: float = 0.0,
    window: float = 60.0,
    facts: list[Fact] | None = None,
    store: ModelStore | None = None,
) -> AggregatorService:
    spool = Spool(None, max_size=1 << 20, window=window)
    observer = None if facts is None else facts.append
    begin = begin or partial(Folded, make=strategy)
    return AggregatorService(begin, spool, store=store, observer=observer, hold=60.0, patience=patience)


def built(strategy: str, disk: Disk | None = None, *, observer: Observer | None = None, **options: Any) -> AggregatorService:
    """Return the service that the settings make, for tests in which no coordinator acknowledges anything."""
    settings = AggregatorSettings(strategy=strategy, strategy_options=options, max_update_ratio=0.0)
    aggregator = build(settings, observer or Observers(), disk)
    aggregator._patience = 0.0
    return aggregator


async def open_round(service: AggregatorService, number: int = 0, ids: Sequence[str] = (ANNA, BERT, CARL)) -> None:
    """Open the attempt `attempt-{number}`; tokens differ from round to round."""
    await service.open(Open(f"attempt-{number}", number, tuple(Admission(id, f"{id} {number}") for id in ids)))


async def opened(strategy: Callable[[Spec], Strategy] = WeightedAverage, **options: Any) -> AggregatorService:
    """Yield a service with an open first attempt."""
    aggregator = service(strategy, **options)
    await open_round(aggregator)
    return aggregator


async def send(service: AggregatorService, id: str, *chunks: bytes, number: int = 0, **options: Any) -> UpdateOutcome:
    return await service.deliver(id, f"{id} {number}", stream(*chunks), **options)


async def deliver(service: AggregatorService, id: str, *weights: float, number: int = 0, dtype: str = "<f4") -> UpdateOutcome:
    return await send(service, id, update(1, *weights, dtype=dtype), number=number)


async def train(aggregator: AggregatorService, number: int, *updates: tuple[int, Weights | bytes]) -> Array:
    """Train a round with these updates: sample counts and weights. Return the first tensor of its model."""
    ids = [f"{'abcdefgh'[k] * 8}-0000" for k in range(len(updates))]
    await open_round(aggregator, number, ids)
    for id, (samples, weights) in zip(ids, updates, strict=True):
        body = [samples.to_bytes(4, "big"), weights] if isinstance(weights, bytes) else encode_update(samples, weights)
        await send(aggregator, id, b"".join(body), number=number)
    await aggregator.close(f"attempt-{number}", ids)
    assert aggregator.model is not None
    return aggregator.model.tensors[0]


async def trained(*rounds: int, store: ModelStore | None = None, facts: list[Fact] | None = None) -> AggregatorService:
    """An aggregator after these rounds; the model of round n has the weights n and 2."""
    aggregator = service(store=store, facts=facts)
    for number in rounds:
        await open_round(aggregator, number)
        await deliver(aggregator, ANNA, float(number), 2.0, number=number)
        await aggregator.close(f"attempt-{number}", [ANNA])
    return aggregator


async def fails(error: type[Exception], step: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(error):
        await step


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def entries(service: AggregatorService) -> list[Entry]:
    """Return all ledger entries that are not acknowledged."""
    return list((await service.ledger("another", 0)).entries)


async def counted(service: AggregatorService) -> list[str]:
    return [entry.id for entry in await entries(service) if entry.outcome is Outcome.COUNTED]


def weights(service: AggregatorService) -> list[float]:
    assert service.model is not None
    array: Array = np.load(BytesIO(b"".join(service.model.buffers)))
    return [float(value) for value in array]
