"""The global models: the newest one, those that are kept, and what is found out about them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fedround.aggregator.codecs import Model
from fedround.aggregator.evaluator import Evaluator
from fedround.aggregator.guards import Figures
from fedround.aggregator.measurer import Measurer
from fedround.aggregator.state import State
from fedround.aggregator.steps import Steps
from fedround.aggregator.store import ModelStore
from fedround.common.books import NO_RUN, Newest, Page, Run
from fedround.errors import Busy, ConfigurationError, DataDamaged
from fedround.events import NotKept, Observer, WasKept


class Models:
    """For one event loop.

    Args:
        newest: What training begins with, or went on to before a restart.
        initial: Reads what a new run begins with; raises `ConfigurationError`. None: a new run begins with the newest model.
        store: Where models are kept; None: nowhere.
        evaluator: Evaluates each model, if it has the time; None: nobody does.
        observer: Told of every fact.
        steps: Runs what nobody waits for.
    """

    def __init__(
        self,
        newest: Model | None,
        initial: Callable[[], Model] | None,
        store: ModelStore | None,
        evaluator: Evaluator | None,
        *,
        observer: Observer,
        steps: Steps,
    ) -> None:
        self.newest = newest
        self._initial = initial
        self.store = store
        self.run = store.run if store else NO_RUN
        """Of the attempt that is open, or of the newest model."""
        self.news = False
        """There is an evaluation that no page has told of."""
        self._observer = observer
        self._steps = steps
        self._measurer = Measurer(observer)
        self._evaluator = evaluator

    @property
    def trained(self) -> Newest | None:
        """What the coordinator is told of the newest model; None where it was not trained."""
        if self.newest is None or self.newest.round is None:
            return None
        return Newest(self.newest.round, self.newest.parameters, self.run.name)

    @property
    def rounds(self) -> Sequence[int]:
        """The rounds whose models are kept."""
        return self.store.rounds if self.store else ()

    @property
    def best(self) -> int | None:
        """The round whose model is the best of the current run; None where none is kept as that."""
        return self.store.best if self.store else None

    @property
    def evaluating(self) -> bool:
        """A model is being evaluated."""
        return self._evaluator is not None and self._evaluator.schedule.running is not None

    def status(self) -> dict[str, object]:
        """The state as JSON-able data."""
        model = self.newest
        return {
            "models": list(self.rounds),
            "model": model and {"round": model.round, "parameters": model.parameters, "dtype": model.layout.dtype},
            "evaluation": self._evaluator and self._evaluator.status(),
        }

    def on_news(self, ring: Callable[[], None]) -> None:
        """Have `ring` called when there is news for the coordinator."""

        def told() -> None:
            self._hold()
            self.news = True
            ring()

        if self._evaluator is not None:
            self._evaluator.on_result = told

    async def begin(self) -> None:
        """Look at the model that was there from the start: nobody knows whether it was evaluated."""
        if self.newest is not None:
            if self.newest.round is not None:
                self._evaluate(self.newest)
            await self._measurer.measure(self.newest)

    async def read_initial(self) -> Model | None:
        """Return what a new run begins with; None: the newest model. Raises `Busy` where it cannot be read now."""
        try:
            return await asyncio.to_thread(self._initial) if self._initial else None
        except ConfigurationError as error:
            raise Busy(str(error), retry_after=1.0) from error

    def enter(self, run: Run, *, begins: bool, initial: Model | None) -> None:
        """From now on models belong to this run, which `begins` now, with `initial` if there is one, and without a state."""
        self.run = run
        if begins and initial is not None:
            self.newest = initial
            self._steps.start(self._measurer.measure(initial))
        elif begins and self.newest is not None:
            self.newest = replace(self.newest, state=State())
        if self.newest is not None and self.newest.round is None:
            self._evaluate(self.newest)

    def serve(self, model: Model) -> None:
        """Make a model the newest."""
        self.newest = model
        self._evaluate(model)
        self._steps.start(self._measurer.measure(model))  # nobody waits for it

    async def keep(self, model: Model, lesson: Figures) -> None:
        """Keep a model on disk. Raises `Busy` where that is not possible now."""
        if self.store is None or model.round is None:
            return
        began = time.perf_counter()
        try:
            save = partial(self.store.save, run=self.run, state=model.state.buffers)
            await asyncio.to_thread(save, model.round, model.buffers, lesson, model.suffix)
        except OSError as error:
            self._observer(NotKept(f"the model of round {model.round}", str(error)))
            raise Busy(f"the model of round {model.round} cannot be kept: {error}", retry_after=1.0) from error
        self._observer(WasKept(time.perf_counter() - began))

    async def mark_best(self, round: int) -> None:
        """Keep the model of a round as the best of its run."""
        if self.store is None:
            return
        try:
            await asyncio.to_thread(self.store.mark_best, round)
        except OSError as error:  # the next page tries again
            self._observer(NotKept(f"that the model of round {round} is the best", str(error)))

    def read(self, round: int, read: Callable[[int, memoryview, memoryview | None], Model]) -> Model:
        """Return a kept model, which `read` makes of its files. Raises `DataDamaged`, and what `read` raises."""
        assert self.store is not None  # noqa: S101 it is kept
        return read(round, self.store.read(round), self.store.read_state(round))

    async def roll_back(self, round: int) -> Sequence[Figures]:
        """Remove the models of all rounds after `round`; return the lessons of the others. Raises `Busy` where that fails."""
        assert self.store is not None  # noqa: S101 there is a model to go back to
        try:
            await asyncio.to_thread(self.store.roll_back, round)
        except OSError as error:
            raise Busy(f"the list of models cannot be written: {error}", retry_after=1.0) from error
        self._measurer.forget(round)
        if self._evaluator is not None:
            self._evaluator.schedule.roll_back(round)
        return self.store.lessons

    async def kept(self, round: int | None) -> Sequence[bytes | memoryview] | None:
        """Return a model's file, of None the initial one; None where it is not kept. Raises `DataDamaged`."""
        if self.newest is not None and self.newest.round == round:
            return self.newest.buffers
        if self.store is None or round is None or round not in self.store.rounds:
            return None
        try:
            return [await asyncio.to_thread(self.store.read, round)]
        except DataDamaged:
            if round not in self.store.rounds:  # a newer one has taken its place meanwhile
                return None
            raise

    def described(self, page: Page) -> Page:
        """Return a page of the ledger with all that is known of models."""
        self.news = False
        page = replace(page, measured=tuple(self._measurer.newest), generation=self.store.generation if self.store else 0)
        if self._evaluator is None:
            return page
        return replace(page, evaluator=self._evaluator.name, evaluations=tuple(self._evaluator.schedule.results))

    def _evaluate(self, model: Model) -> None:
        if self._evaluator is not None:
            self._evaluator.submit(model, self.run.name)
            self._hold()

    def _hold(self) -> None:
        if self.store is not None and self._evaluator is not None:
            self.store.held = self._evaluator.schedule.rounds
