"""The API of xain-sdk 0.8.0 on top of fedround: a participant that was written for it runs unchanged.

New code imports `fedround`. Where the real xain-sdk is installed too, both are called `xain_sdk` and only one is found.
"""

import warnings
from importlib.metadata import PackageNotFoundError, distribution

from fedround.errors import ParticipantError
from fedround.http import http_log
from fedround.participant.abc import ParticipantABC
from xain_sdk.participant import run_participant

__all__ = ["ParticipantABC", "ParticipantError", "configure_logging", "run_participant"]


def configure_logging(log_http_requests: bool = False) -> None:
    """Have every request and its answer logged, or not: one line each at INFO, headers at DEBUG, ids and tokens cut.

    As in 0.8 the loggers are `xain-sdk.http`, and `http` for the progress; where their lines go is for the program to configure.
    """
    http_log.log_requests(log_http_requests)


def _warn_of_the_real_one() -> None:
    try:
        version = distribution("xain-sdk").version
    except PackageNotFoundError:
        return
    warnings.warn(
        f"xain-sdk {version} is installed beside fedround, which brings a module `xain_sdk` of its own: uninstall one of them",
        RuntimeWarning,
        stacklevel=3,
    )


_warn_of_the_real_one()
