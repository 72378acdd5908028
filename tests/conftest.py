"""Rules for all tests: coroutines run, a test that is skipped because a tool is missing fails in CI, and Ctrl-C interrupts."""

import asyncio
import gc
import inspect
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import settings

from support.certificates import Authority

# The time of an example depends more on the machine than on our code.
settings.register_profile("fedround", deadline=None)
settings.load_profile("fedround")

# A shell that runs a command in the background makes it, and all its children, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _fail_where_skipped(report: Report) -> Report:
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"nothing is skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_where_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_where_skipped((yield))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function: on uvloop, as in production, or on a loop of its fixture `loop_factory`."""
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments = inspect.signature(pyfuncitem.function).parameters
    loop_factory: Any = pyfuncitem.funcargs.get("loop_factory", uvloop.new_event_loop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(pyfuncitem.function(**{name: pyfuncitem.funcargs[name] for name in arguments}))
    return True


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority for this session of tests."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def garbage_collection_as_before() -> Iterator[None]:
    """Undo what tuning a process does to the garbage collector."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
