"""The end of a process that the participant's own code runs in: it must not keep the process, and nobody can interrupt it."""

import logging
import os
import threading
import time
from typing import Never

LOG = logging.getLogger(__name__)

LAST_GRACE = 5.0
"""Seconds that the participant's own code has, its threads and what it does at exit, when all else has ended."""


def not_kept(code: int) -> None:
    """End this process with `code` in `LAST_GRACE` seconds, if it has not ended by itself by then."""
    threading.Thread(target=_end_without, args=(code,), name="fedround-exit", daemon=True).start()


def end(code: int) -> Never:
    """End this process now, whatever its threads do."""
    logging.shutdown()
    os._exit(code)


def _end_without(code: int) -> None:
    time.sleep(LAST_GRACE)  # as a rule the process, and with it this thread, ends long before
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    why = f"threads that do not end ({', '.join(names)})" if names else "what it does at exit"
    LOG.warning("the participant's own code keeps the process by %s: exiting without it", why)
    end(code)
