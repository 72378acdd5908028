"""Coordinator and aggregator in one process: the books are asked by plain calls, and there is no internal port."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fedround import serve
from fedround.aggregator import app as aggregator_app
from fedround.aggregator.service import AggregatorService
from fedround.coordinator import app as coordinator_app
from fedround.coordinator.service import CoordinatorService
from fedround.events import Observer
from fedround.observability.health import Health
from fedround.observability.metrics import AggregatorMetrics, CoordinatorMetrics
from fedround.observability.telemetry import Telemetry
from fedround.serve import Endpoint
from fedround.settings import AggregatorSettings, CoordinatorSettings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """Both services at work, and the endpoints, which know the ports that they got."""

    coordinator: CoordinatorService
    aggregator: AggregatorService
    coordinator_public: Endpoint
    coordinator_ops: Endpoint
    aggregator_public: Endpoint
    aggregator_ops: Endpoint

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.coordinator_public, self.coordinator_ops, self.aggregator_public, self.aggregator_ops


@asynccontextmanager
async def serving(
    coordinator: CoordinatorSettings, aggregator: AggregatorSettings, observers: Iterable[Observer] = ()
) -> AsyncIterator[Platform]:
    """Serve both within the block. Raises `ConfigurationError`.

    Where nobody said how participants reach the aggregator they are sent to the port that it got.
    """
    health, others = Health(), tuple(observers)
    of_aggregator = Telemetry(AggregatorMetrics(), others)
    of_coordinator = Telemetry(CoordinatorMetrics(), [coordinator_app.readiness(health), *others])
    books = aggregator_app.build(aggregator, of_aggregator.observe)
    service = coordinator_app.build(coordinator, books, of_coordinator.observe)
    platform = Platform(
        service,
        books,
        coordinator_app.public_endpoint(coordinator, service, of_coordinator),
        coordinator_app.ops_endpoint(coordinator, service, health, of_coordinator),
        aggregator_app.public_endpoint(aggregator, books, of_aggregator),
        aggregator_app.ops_endpoint(aggregator, books, Health(), of_aggregator),
    )
    async with serve.serving(*platform.endpoints):
        if "aggregator_url" not in coordinator.model_fields_set:
            service.aggregator_url = f"http://localhost:{platform.aggregator_public.port}"
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(service.run())
            yield platform
            work.cancel()
        # Now nobody acknowledges updates any more: who waits for that is answered.
        books.stop()


def run(coordinator: CoordinatorSettings, aggregator: AggregatorSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigurationError`."""
    serve.run(_run(coordinator, aggregator))


async def _run(coordinator: CoordinatorSettings, aggregator: AggregatorSettings) -> None:
    with serve.capture_signals() as stop:
        async with serving(coordinator, aggregator):
            await stop.wait()
            LOG.info("stopping")
