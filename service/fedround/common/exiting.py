"""The end of a process with users' code, even if that code does not return."""

import logging
import os
import threading
import time
from typing import Never

LOG = logging.getLogger(__name__)

EXIT_GRACE = 5.0
"""Seconds for the training code's threads and exit handlers, after everything else has ended."""


def exit_after_grace(code: int) -> None:
    """End this process with `code` if it has not ended within `EXIT_GRACE` seconds."""
    threading.Thread(target=_exit_later, args=(code,), name="fedround-exit", daemon=True).start()


def exit_now(code: int) -> Never:
    """End this process immediately, without waiting for its threads. A regular exit may crash while one runs users' code."""
    logging.shutdown()
    os._exit(code)


def _exit_later(code: int) -> None:
    time.sleep(EXIT_GRACE)  # usually the process, and this thread with it, ends before
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    what = f"threads of the training code ({', '.join(names)})" if names else "exit handlers of the training code"
    LOG.warning("%s do not end: exiting without them", what)
    exit_now(code)
