"""Ends a process that training code runs in, even if that code does not return."""

import logging
import os
import threading
import time
from typing import Never

LOG = logging.getLogger(__name__)

LAST_GRACE = 5.0
"""Seconds for the training code's threads and exit handlers, after everything else has ended."""


def not_kept(code: int) -> None:
    """End this process with `code` if it has not ended within `LAST_GRACE` seconds."""
    threading.Thread(target=_end_without, args=(code,), name="fedround-exit", daemon=True).start()


def end(code: int) -> Never:
    """End this process immediately, without waiting for its threads."""
    logging.shutdown()
    os._exit(code)


def _end_without(code: int) -> None:
    time.sleep(LAST_GRACE)  # usually the process, and this thread with it, ends before
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    what = f"threads of the training code ({', '.join(names)})" if names else "exit handlers of the training code"
    LOG.warning("%s do not end: exiting without them", what)
    end(code)
