import gc
import os
import signal
import subprocess
import sys

import pytest

from fedround.common.process import capture_signals, run, tune

pytestmark = pytest.mark.usefixtures("garbage_collection_as_before")


def test_a_signal_sets_the_event_and_handlers_are_restored() -> None:
    async def main(number: int) -> None:
        with capture_signals() as stop:
            assert signal.getsignal(number) is not before
            os.kill(os.getpid(), number)
            await stop.wait()

    before = signal.getsignal(signal.SIGTERM)
    run(main(signal.SIGTERM))
    run(main(signal.SIGINT))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_immediately() -> None:
    program = """
import asyncio
from fedround.common.process import capture_signals, run

async def main():
    with capture_signals() as stop:
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.Future()

run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "stopping\n"
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM


def test_existing_objects_are_excluded_from_garbage_collection() -> None:
    tune()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == (100_000, 50, 50)


def test_the_limit_of_open_files_is_raised_to_the_maximum() -> None:
    program = """
import resource
from fedround.common.process import tune

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
tune()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "200 200\n"
