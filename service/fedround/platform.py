"""Coordinator and aggregator in one process. The coordinator calls the aggregator directly, without an internal port."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround.aggregator import app as aggregator_app
from fedround.aggregator import operators
from fedround.aggregator.build import build
from fedround.aggregator.service import AggregatorService
from fedround.common import durable, exiting, process
from fedround.common.durable import Disk
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.coordinator import app as coordinator_app
from fedround.coordinator.relay import relaying
from fedround.coordinator.service import CoordinatorService
from fedround.errors import ConfigurationError
from fedround.events import Observer
from fedround.http import serve
from fedround.http.serve import Endpoint
from fedround.observability.health import Health, running
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.pushes import exporting
from fedround.observability.telemetry import INSTANCE, Telemetry

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """Both running services, and their endpoints with the bound ports."""

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
    coordinator: CoordinatorSettings,
    aggregator: AggregatorSettings,
    observers: Iterable[Observer] = (),
    *,
    disks: Sequence[Disk | None] = (None, None),
    traces: "Tracing | None" = None,
    show: Callable[[str, Telemetry], None] = lambda _service, _telemetry: None,
) -> AsyncIterator[Platform]:
    """Serve both within the block.

    Without `aggregator_url` in the settings, participants get the URL of the aggregator's port at localhost.

    Args:
        coordinator: Settings of the coordinator.
        aggregator: Settings of the aggregator.
        observers: Receive the facts of both.
        disks: The data directories of the coordinator and of the aggregator.
        traces: Exports the spans of both.
        show: Called with each service's name and telemetry.

    Raises:
        ConfigurationError: A setting is invalid, or a port cannot be bound.
    """
    health, others = (Health(), Health()), tuple(observers)
    of_aggregator = Telemetry(AggregatorMetrics, [operators.readiness(health[1]), *others], traces)
    of_coordinator = Telemetry(CoordinatorMetrics, [coordinator_app.readiness(health[0]), *others], traces)
    books = build(aggregator, of_aggregator.observe, disks[1])
    service = coordinator_app.build(coordinator, books, of_coordinator.observe, disks[0], of_coordinator.round_context)
    async with relaying(coordinator, of_coordinator.observe) as relay:
        platform = Platform(
            service,
            books,
            coordinator_app.public_endpoint(coordinator, service, of_coordinator, relay),
            coordinator_app.ops_endpoint(coordinator, service, health[0], of_coordinator),
            aggregator_app.public_endpoint(aggregator, books, of_aggregator),
            aggregator_app.ops_endpoint(aggregator, books, health[1], of_aggregator),
        )
        show("coordinator", of_coordinator)
        show("aggregator", of_aggregator)
        async with serve.serving(*platform.endpoints):
            if "aggregator_url" not in coordinator.model_fields_set:
                scheme = "https" if platform.aggregator_public.tls else "http"
                service.aggregator_url = f"{scheme}://localhost:{platform.aggregator_public.port}"
            checks = aggregator_app.keep_checking(aggregator, health[1])
            async with running(health[0], service.run()), running(health[1], checks, books.models.begin()):
                yield platform
            # The coordinator no longer acknowledges updates, so respond to uploads that wait for it.
            books.stop()


def run(coordinator: CoordinatorSettings, aggregator: AggregatorSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigurationError`."""
    if coordinator.data_dir and aggregator.data_dir and coordinator.data_dir.resolve() == aggregator.data_dir.resolve():
        raise ConfigurationError("COORDINATOR_DATA_DIR and AGGREGATOR_DATA_DIR are the same: give each service its own directory")
    with (
        durable.locked(coordinator.data_dir, "COORDINATOR_DATA_DIR") as rounds,
        durable.locked(aggregator.data_dir, "AGGREGATOR_DATA_DIR") as models,
    ):
        evaluating = process.run(_run(coordinator, aggregator, rounds, models))
    if evaluating:
        exiting.exit_now(0)


async def _run(coordinator: CoordinatorSettings, aggregator: AggregatorSettings, *disks: Disk | None) -> bool:
    """Serve until a signal. Return whether a model is still being evaluated."""
    with process.capture_signals() as stop, exporting("platform", INSTANCE) as exports:
        async with serving(coordinator, aggregator, disks=disks, traces=exports.tracing, show=exports.add) as platform:
            await stop.wait()
            LOG.info("stopping")
    return platform.aggregator.models.evaluating
