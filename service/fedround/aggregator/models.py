"""The global models: the newest one, the stored ones, and their statistics and evaluations."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fedround.aggregator.codecs import Model
from fedround.aggregator.evaluator import Evaluator
from fedround.aggregator.guards import Size
from fedround.aggregator.measurer import Measurer
from fedround.aggregator.state import State
from fedround.aggregator.store import ModelStore
from fedround.aggregator.tasks import Tasks
from fedround.common.books import NO_RUN, Newest, Page, Run
from fedround.errors import Busy, ConfigurationError, DataDamaged
from fedround.events import Observer, SaveFailed, StateSaved


class Models:
    """The global models. For one event loop.

    Args:
        newest: The initial model, or the newest one from before a restart.
        initial: Reads the initial model of a new run; raises `ConfigurationError`. None: a new run begins with the newest model.
        store: Stores models on disk; None: models stay in memory only.
        evaluator: Evaluates models in the background; None: the aggregator evaluates none.
        observer: Receives every fact.
        tasks: Runs background tasks.
    """

    def __init__(
        self,
        newest: Model | None,
        initial: Callable[[], Model] | None,
        store: ModelStore | None,
        evaluator: Evaluator | None,
        *,
        observer: Observer,
        tasks: Tasks,
    ) -> None:
        self.newest = newest
        self._initial = initial
        self.store = store
        self.run = store.run if store else NO_RUN
        """The run of the open attempt, or of the newest model."""
        self.news = False
        """Whether there is an evaluation that no page has reported."""
        self._observer = observer
        self._tasks = tasks
        self._measurer = Measurer(observer)
        self._evaluator = evaluator

    @property
    def trained(self) -> Newest | None:
        """The newest model for the ledger; None if no round has trained it."""
        if self.newest is None or self.newest.round is None:
            return None
        return Newest(self.newest.round, self.newest.parameters, self.run.name)

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds whose models are stored."""
        return self.store.rounds if self.store else ()

    @property
    def best(self) -> int | None:
        """The round of the best model of the current run; None if no model is marked."""
        return self.store.best if self.store else None

    @property
    def evaluating(self) -> bool:
        """Whether a model is being evaluated."""
        return self._evaluator is not None and self._evaluator.schedule.running is not None

    def status(self) -> dict[str, object]:
        """Return the state as JSON-able data."""
        model = self.newest
        return {
            "models": list(self.rounds),
            "model": model and {"round": model.round, "parameters": model.parameters, "dtype": model.layout.dtype},
            "evaluation": self._evaluator and self._evaluator.status(),
        }

    def on_news(self, notify: Callable[[], None]) -> None:
        """Call `notify` when a page of the ledger would report a new evaluation."""

        def on_result() -> None:
            self._protect()
            self.news = True
            notify()

        if self._evaluator is not None:
            self._evaluator.on_result = on_result

    async def begin(self) -> None:
        """Evaluate and measure the model from before a restart, as its evaluation may not have ended."""
        if self.newest is not None:
            if self.newest.round is not None:
                self._evaluate(self.newest)
            await self._measurer.measure(self.newest)

    async def read_initial(self) -> Model | None:
        """Return the initial model of a new run; None: the newest model. Raises `Busy` if it cannot be read now."""
        try:
            return await asyncio.to_thread(self._initial) if self._initial else None
        except ConfigurationError as error:
            raise Busy(str(error), retry_after=1.0) from error

    def set_run(self, run: Run, *, begins: bool, initial: Model | None) -> None:
        """Switch to a run. If it `begins` now, its first model is `initial` or the newest one, without a strategy's state."""
        self.run = run
        if begins and initial is not None:
            self.newest = initial
            self._tasks.start(self._measurer.measure(initial))
        elif begins and self.newest is not None:
            self.newest = replace(self.newest, state=State())
        if self.newest is not None and self.newest.round is None:
            self._evaluate(self.newest)

    def serve(self, model: Model) -> None:
        """Make a model the newest, and evaluate and measure it in the background."""
        self.newest = model
        self._evaluate(model)
        self._tasks.start(self._measurer.measure(model))

    async def save(self, model: Model, baseline: Size) -> None:
        """Store a model on disk. Raises `Busy` if that fails."""
        if self.store is None or model.round is None:
            return
        began = time.perf_counter()
        try:
            save = partial(self.store.save, run=self.run, state=model.state.buffers)
            await asyncio.to_thread(save, model.round, model.buffers, baseline, model.suffix)
        except OSError as error:
            self._observer(SaveFailed(f"the model of round {model.round}", str(error)))
            raise Busy(f"the model of round {model.round} cannot be stored: {error}", retry_after=1.0) from error
        self._observer(StateSaved(time.perf_counter() - began))

    async def mark_best(self, round: int) -> None:
        """Mark the model of a round as the best of its run."""
        if self.store is None:
            return
        try:
            await asyncio.to_thread(self.store.mark_best, round)
        except OSError as error:  # the next page tries again
            self._observer(SaveFailed(f"the mark of the best model, that of round {round},", str(error)))

    def read(self, round: int, read: Callable[[int, memoryview, memoryview | None], Model]) -> Model:
        """Return a stored model. `read` makes it from its files. Raises `DataDamaged`, and the errors of `read`."""
        assert self.store is not None  # noqa: S101 the model is stored
        return read(round, self.store.read(round), self.store.read_state(round))

    async def roll_back(self, round: int) -> Sequence[Size]:
        """Remove the models of all rounds after `round`. Return the baselines of the others. Raises `Busy` if that fails."""
        assert self.store is not None  # noqa: S101 the model is stored
        try:
            await asyncio.to_thread(self.store.roll_back, round)
        except OSError as error:
            raise Busy(f"the list of models cannot be written: {error}", retry_after=1.0) from error
        self._measurer.forget(round)
        if self._evaluator is not None:
            self._evaluator.schedule.roll_back(round)
        return self.store.baselines

    async def file_of(self, round: int | None) -> Sequence[bytes | memoryview] | None:
        """Return the file of a round's model, or of the initial one; None if it is not stored. Raises `DataDamaged`."""
        if self.newest is not None and self.newest.round == round:
            return self.newest.buffers
        if self.store is None or round is None or round not in self.store.rounds:
            return None
        try:
            return [await asyncio.to_thread(self.store.read, round)]
        except DataDamaged:
            if round not in self.store.rounds:  # the store has removed it meanwhile
                return None
            raise

    def described(self, page: Page) -> Page:
        """Return a page of the ledger with the statistics and evaluations of models added."""
        self.news = False
        page = replace(page, measured=tuple(self._measurer.newest), generation=self.store.generation if self.store else 0)
        if self._evaluator is None:
            return page
        return replace(page, evaluator=self._evaluator.name, evaluations=tuple(self._evaluator.schedule.results))

    def _evaluate(self, model: Model) -> None:
        if self._evaluator is not None:
            self._evaluator.submit(model, self.run.name)
            self._protect()

    def _protect(self) -> None:
        if self.store is not None and self._evaluator is not None:
            self.store.protected = self._evaluator.schedule.rounds
