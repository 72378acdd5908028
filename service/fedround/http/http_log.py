"""HTTP in the logs: the request lines of xain-sdk 0.8, and the lines of other libraries without ids and tokens."""

import logging
from typing import TYPE_CHECKING

from fedround.common.text import redact

if TYPE_CHECKING:
    import httpx

REQUESTS = logging.getLogger("xain-sdk.http")
FOREIGN = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")
"""Every logger of httpx and httpcore. A logger's filters do not see the records of its child loggers."""


def log_requests(enabled: bool) -> None:
    """Log requests and responses as xain-sdk 0.8 does: one line each at INFO, headers at DEBUG. Silence httpx's own lines."""
    REQUESTS.disabled = not enabled
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING if enabled else logging.NOTSET)


def request(request: "httpx.Request") -> None:
    """Log a request (an httpx event hook)."""
    _log(logging.INFO, f">>> {request.method} {request.url}", request.headers)


def response(response: "httpx.Response") -> None:
    """Log a response (an httpx event hook)."""
    level = logging.INFO if response.is_success else logging.WARNING
    _log(level, f"<<< {response.request.method} {response.url} [{response.status_code}]", response.headers)


def _log(level: int, line: str, headers: "httpx.Headers") -> None:
    if REQUESTS.isEnabledFor(level):
        REQUESTS.log(level, "%s", redact(line))
    if REQUESTS.isEnabledFor(logging.DEBUG):
        for name, value in headers.items():
            REQUESTS.debug("%s", redact(f"{name}: {value}"))


def _redacted(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    return True


REQUESTS.disabled = True
for _name in FOREIGN:
    logging.getLogger(_name).addFilter(_redacted)
