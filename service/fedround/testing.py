"""A platform for tests of participants: the real services, in memory and without sockets.

Example::

    def test_it_learns():
        with fedround.testing.platform(rounds=3) as p:
            p.run(MyParticipant())
        assert len(p.rounds) == 3
        assert p.rounds[-1].metrics["loss"] < p.rounds[0].metrics["loss"]
        assert p.global_model.shape == (10,)
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from fedround import events
from fedround.aggregator import app as aggregator_app
from fedround.aggregator.build import build
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.coordinator import app as coordinator_app
from fedround.errors import ConfigurationError, RoundFailed
from fedround.events import Fact
from fedround.http.transport import InMemory
from fedround.participant import moves as m
from fedround.participant.abc import shared_tensors
from fedround.participant.run import Participant, connected, fulfil
from fedround.participant.runtime import Runtime
from fedround.participant.terms import Options, Terms
from fedround.tensors.weights import encode_model

__all__ = ["CompletedRound", "Platform", "platform"]

HEARTBEAT_PERIOD = 0.05
"""Seconds between heartbeats in a round, for up to `FULL_RATE` participants. More participants share the rate of these."""
FULL_RATE = 5
MAX_FAILURES = 3
"""Failed attempts of a round for a permanent reason, after which `run` raises `RoundFailed`."""


@dataclass(frozen=True)
class CompletedRound:
    """A round that made a new global model."""

    number: int
    updates: int
    """Number of counted updates."""
    samples: int
    """Total number of samples of these updates."""
    metrics: Mapping[str, float]
    """Metrics that the participants reported: means, weighted by samples."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Metrics that `evaluate` returned for the model of this round: means, weighted by samples."""

    @property
    def figures(self) -> Mapping[str, float]:
        """The old name of `metrics`."""
        return self.metrics


class Platform:
    """A coordinator and an aggregator in memory, and the results of the training."""

    def __init__(self, coordinator: CoordinatorSettings, aggregator: AggregatorSettings) -> None:
        self.rounds: list[CompletedRound] = []
        """The completed rounds."""
        self._settings = coordinator
        self._complete = False
        self._aggregator = build(aggregator, self._observe)
        self._coordinator = coordinator_app.build(coordinator, self._aggregator, self._observe)
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._runtimes: set[Runtime] = set()
        self._min_clients = coordinator.min_clients
        self._failure: BaseException | None = None
        """The error because of which all participants stop."""

    @property
    def global_model(self) -> Any:
        """A copy of the newest global model, or None before the first round.

        It is an array or a dict of named arrays, like the weights that participants return. With a strategy for bytes, it is an
        array of uint8.
        """
        model = self._aggregator.model
        if model is None:
            return None
        weights = model.weights
        return {name: array.copy() for name, array in weights.items()} if isinstance(weights, Mapping) else weights.copy()

    def run(self, *participants: Participant, **options: Unpack[Options]) -> None:
        """Run participants until training is complete: the first one on this thread, each other one on a new thread.

        A second call trains the same number of rounds again, from the current global model.

        Args:
            participants: At least `min_clients` participants.
            options: Options of all participants.

        Raises:
            ConfigurationError: There are fewer participants than `min_clients`.
            ParticipantError: The code of a participant failed. The other participants stop.
            RoundFailed: A round failed three times for a permanent reason, such as updates with different shapes.
        """
        if len(participants) < self._min_clients:
            raise ConfigurationError(f"min_clients={self._min_clients}: run() needs as many participants, not {len(participants)}")
        self._failure = None
        if self._complete:
            asyncio.run_coroutine_threadsafe(self._continue(), self._loop.result()).result()
        period = HEARTBEAT_PERIOD * max(1.0, len(participants) / FULL_RATE)
        others = [Future[m.Reason]() for _ in participants[1:]]
        for number, (other, participant) in enumerate(zip(others, participants[1:], strict=True), 1):
            run = partial(self._run, participant, period, Options(name=f"participant-{number}") | options)
            threading.Thread(target=fulfil, args=(other, run), daemon=True).start()
        try:
            self._run(participants[0], period, Options(name="participant-0") | options)
        finally:
            wait(others)
        for other in others:
            other.result()
        if self._failure is not None:
            raise self._failure

    def _run(self, participant: Participant, period: float, options: Options) -> m.Reason:
        apps = {"coordinator": coordinator_app.public(self._coordinator), "aggregator": aggregator_app.public(self._aggregator)}
        transport = InMemory(apps, self._loop.result())
        with connected(participant, "http://coordinator", Terms.of(period, options), transport=transport) as runtime:
            self._runtimes.add(runtime)
            if self._failure is not None:
                runtime.stop(0.0)
            try:
                return runtime.run()
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                self._runtimes.discard(runtime)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        for runtime in tuple(self._runtimes):
            runtime.stop(0.0)

    def _observe(self, fact: Fact) -> None:
        if isinstance(fact, events.RoundCompleted):
            self.rounds.append(CompletedRound(fact.round, len(fact.ids), fact.samples, dict(fact.metrics)))
        if isinstance(fact, events.Evaluated):
            self.rounds[:] = [replace(r, evaluation=dict(fact.metrics)) if r.number == fact.round else r for r in self.rounds]
        if isinstance(fact, events.TrainingCompleted):
            self._complete = True
        if isinstance(fact, events.AttemptDropped) and fact.failures >= MAX_FAILURES:
            self._fail(RoundFailed(fact.round, fact.failures, fact.reason))

    @contextmanager
    def _running(self) -> Iterator[None]:
        thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._loop.result().call_soon_threadsafe(self._stop.set)
            thread.join()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop.set_result(asyncio.get_running_loop())
        async with asyncio.TaskGroup() as self._tasks:
            self._task = self._tasks.create_task(self._coordinator.run())
            await self._stop.wait()
            self._task.cancel()

    async def _continue(self) -> None:
        """Replace the finished coordinator by one that continues after the newest model."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._complete = False
        settings = self._settings.model_copy(update={"rounds": len(self.rounds) + self._settings.rounds})
        self._coordinator = coordinator_app.build(settings, self._aggregator, self._observe)
        self._task = self._tasks.create_task(self._coordinator.run())


@contextmanager
def platform(
    *,
    rounds: int = 3,
    min_clients: int = 1,
    participants_ratio: float = 1.0,
    strategy: str = "weighted_average",
    strategy_options: Mapping[str, object] | None = None,
    initial_model: Any = None,
    round_timeout: float = 3600.0,
    heartbeat_timeout: float = 15.0,
    evaluate_every: int = 1,
    quorum: float | None = None,
    grace: float = 0.0,
    overselect: float = 0.0,
    round_config: Mapping[str, object] | None = None,
) -> Iterator[Platform]:
    """Run a platform within the block. `rounds` and `global_model` stay available after it.

    Args:
        rounds: Number of rounds that each `run` trains.
        min_clients: Minimum number of participants before a round begins.
        participants_ratio: Share of the participants that a round selects.
        strategy: Name or `module:Class` of the strategy, which combines updates into a global model.
        strategy_options: Keyword arguments for the strategy.
        initial_model: Weights for the first round: an array, or a mapping of names to arrays.
        round_timeout: Seconds that selected participants have to upload. After that, others replace those that did not.
        heartbeat_timeout: Seconds without a heartbeat after which a participant is removed.
        evaluate_every: Number of rounds from one evaluation of the global model to the next. 0: no evaluations.
        quorum: Number of updates that close a round: up to 1 a share of the selected participants, above 1 a whole number.
        grace: Seconds that the other participants have to upload after the quorum is counted.
        overselect: Share of participants to select in addition.
        round_config: Content of `current_round().config`: values, or schedules by round.
    """
    coordinator = CoordinatorSettings(
        rounds=rounds,
        min_clients=min_clients,
        participants_ratio=participants_ratio,
        round_timeout=round_timeout,
        heartbeat_timeout=heartbeat_timeout,
        evaluate_every=evaluate_every,
        quorum=quorum,
        grace=grace,
        overselect=overselect,
        round_config=dict(round_config or {}),
        aggregator_url="http://aggregator",
    )
    with TemporaryDirectory() as directory:
        file = None if initial_model is None else Path(directory) / "model"
        if file is not None:
            weights, _ = shared_tensors(initial_model)
            file.write_bytes(b"".join(encode_model(weights)))
        running = Platform(
            coordinator, AggregatorSettings(strategy=strategy, strategy_options=dict(strategy_options or {}), initial_model=file)
        )
    with running._running():
        yield running
