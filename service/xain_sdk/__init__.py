"""The API of xain-sdk 0.8.0 on top of fedround. A participant that was written for it runs unchanged.

New code imports `fedround`. If the original xain-sdk is installed too, Python finds only one of the two modules `xain_sdk`.
"""

import warnings
from importlib.metadata import PackageNotFoundError, distribution

from fedround.errors import ParticipantError
from fedround.http import http_log
from fedround.participant.abc import ParticipantABC
from xain_sdk.participant import run_participant

__all__ = ["ParticipantABC", "ParticipantError", "configure_logging", "run_participant"]


def configure_logging(log_http_requests: bool = False) -> None:
    """Turn the log of HTTP requests and responses on or off: a line for each at INFO, headers at DEBUG. Ids and tokens are removed.

    As in 0.8, the logger is `xain-sdk.http`; `http` logs progress. The program configures their handlers.
    """
    http_log.log_requests(log_http_requests)


def _warn_of_original() -> None:
    try:
        version = distribution("xain-sdk").version
    except PackageNotFoundError:
        return
    warnings.warn(
        f"xain-sdk {version} is installed beside fedround, which has its own module `xain_sdk`: uninstall one of them",
        RuntimeWarning,
        stacklevel=3,
    )


_warn_of_original()
