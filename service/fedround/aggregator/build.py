"""The construction of the aggregator's service: its strategy, its guard, and the model with which training continues."""

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fedround.aggregator import evaluator as evaluators
from fedround.aggregator.codecs import OPAQUE, Model, read_model
from fedround.aggregator.guards import Guard, Limits
from fedround.aggregator.running import Collected, CollectedBytes, Folded, Running
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import ROBUST, UNWEIGHTED, load_strategy
from fedround.common.durable import Disk
from fedround.common.settings import AggregatorSettings
from fedround.errors import ConfigurationError, WeightsError
from fedround.events import Observer
from fedround.tensors.weights import Layout, Spec

LOG = logging.getLogger(__name__)


def build(settings: AggregatorSettings, observer: Observer, disk: Disk | None = None) -> AggregatorService:
    """Return the service for the settings.

    Args:
        settings: The settings of the aggregator.
        observer: Receives every fact.
        disk: The data directory; None: models stay in memory only.

    Raises:
        ConfigurationError: A setting is invalid, or a file that it names cannot be used.
    """
    spool = Spool(settings.spool_dir, max_size=settings.max_model_size)
    spool.check()
    layout, begin = _strategy(settings, spool)
    store = ModelStore(disk, keep=settings.keep_models) if disk else None
    model = _model(settings, layout, store, spool)
    limits = Limits(
        change=math.inf if settings.max_update_norm is None else settings.max_update_norm,
        ratio=0.0 if settings.strategy in ROBUST else settings.max_update_ratio,
        samples=settings.max_samples,
        weighted=settings.strategy not in UNWEIGHTED,
    )
    guard = Guard(limits, store.baselines if store else ())
    initial = partial(_initial, settings, layout, spool) if settings.initial_model else None
    evaluator = evaluators.load(settings.evaluate, observer) if settings.evaluate else None
    known: Any = {"layout": layout, "model": model, "initial": initial, "store": store, "evaluator": evaluator}
    options = json.dumps(settings.strategy_options) if settings.strategy_options else ""
    strategy = f"{settings.strategy} {options}".strip()
    return AggregatorService(begin, spool, **known, guard=guard, observer=observer, strategy=strategy)


def _strategy(settings: AggregatorSettings, spool: Spool) -> tuple[Layout | None, Callable[[Layout], Running]]:
    """Return the layout of a custom format, or None, and the function that begins a running aggregate."""
    make: Callable[[Spec], Any] = partial(load_strategy(settings.strategy), **settings.strategy_options)
    try:
        example = make(Spec(np.dtype("<f4"), (1,)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"AGGREGATOR_STRATEGY_OPTIONS: {settings.strategy} does not take them: {error}") from error
    combines, folds = hasattr(example, "combine"), hasattr(example, "fold") and hasattr(example, "result")
    match getattr(example, "codec", "npy"):
        case "npy" if combines:
            return None, lambda layout: Collected(layout, make, spool)
        case "npy" if folds:
            return None, lambda layout: Folded(layout, make)
        case "bytes" if combines:
            return OPAQUE, lambda layout: CollectedBytes(make(layout.tensors[0]), spool)
    raise ConfigurationError(
        f"AGGREGATOR_STRATEGY: {settings.strategy} has neither `fold` and `result` nor `combine`, or an unknown `codec`"
    )


def _model(settings: AggregatorSettings, layout: Layout | None, store: ModelStore | None, spool: Spool) -> Model | None:
    """Return the newest stored model, or else the initial one; None: there is none."""
    if store is not None and store.rounds:
        newest = store.rounds[-1]
        LOG.info("resumed with the model of round %d", newest)
        try:
            return read_model(newest, store.read(newest), layout, store.read_state(newest))
        except WeightsError as error:
            why = f"the model of round {newest} in AGGREGATOR_DATA_DIR is of another strategy: {error}"
            raise ConfigurationError(f"AGGREGATOR_STRATEGY={settings.strategy}: {why}") from error
    return None if settings.initial_model is None else _initial(settings, layout, spool)


def _initial(settings: AggregatorSettings, layout: Layout | None, spool: Spool) -> Model:
    """Return the initial model. Raises `ConfigurationError`."""
    path = settings.initial_model
    assert path is not None  # noqa: S101 the callers check it
    try:
        model = read_model(None, memoryview(bytearray(path.read_bytes())), layout)
        spool.check_size(sum(array.nbytes for array in model.tensors), "as a model it has ")
        return model
    except (OSError, WeightsError) as error:
        raise ConfigurationError(f"AGGREGATOR_INITIAL_MODEL={path}: {error}") from error
