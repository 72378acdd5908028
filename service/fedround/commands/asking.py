"""How commands ask the ops port of a running service: where it is, with which token, and what its answer means.

It uses neither httpx nor the settings: a probe runs every few seconds, and urllib is imported in a tenth of the time.
"""

import json
import os
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedround.common.wire import SPEAKS_TLS
from fedround.errors import FedroundError

if TYPE_CHECKING:
    import ssl

MAX_ANSWER = 64 << 20
"""Bytes of an answer: a status may name every participant."""
ANY_TOKEN = "FEDROUND_TOKEN"  # noqa: S105 the name of a variable
"""The variable that holds the operators' token of whichever service is asked."""
OPS = {
    "participant": ("PARTICIPANT_OPS_BIND", "PARTICIPANT_OPS_PORT", "8080"),
    "coordinator": ("COORDINATOR_BIND", "COORDINATOR_OPS_PORT", "9081"),
    "aggregator": ("AGGREGATOR_BIND", "AGGREGATOR_OPS_PORT", "9082"),
}
"""The variables that say where each is served to operators, and its default port."""
CERTIFICATES = {
    "participant": "PARTICIPANT_OPS_TLS_CERT_FILE",
    "coordinator": "COORDINATOR_TLS_CERT_FILE",
    "aggregator": "AGGREGATOR_TLS_CERT_FILE",
}
"""The variables that name the certificate with which that port serves TLS."""
CA_FILE = "--ca-file"
RUNS, HISTORY = "/runs", "/history"
"""Where a coordinator tells of its runs, and of the rounds of one."""


def add_service(parser: ArgumentParser) -> None:
    """Arguments that say whose ops port is meant."""
    parser.add_argument("service", nargs="?", choices=OPS, help="which one on this machine [default participant]")
    parser.add_argument("--from", dest="url", metavar="URL", help="the service's ops port; by default what its variables say")
    add_ca_file(parser)


def add_ca_file(parser: ArgumentParser) -> None:
    """The flag for the authority of the service's certificate."""
    parser.add_argument(CA_FILE, metavar="FILE", help="with https://, the authority (PEM) to trust, in place of the usual ones")


def add_token(parser: ArgumentParser) -> None:
    """The flag for the operators' token."""
    parser.add_argument(
        "--token", help=f"the operators' token of the service; by default its ..._OPS_TOKEN or ..._OPS_TOKEN_FILE, else {ANY_TOKEN}"
    )


@dataclass(frozen=True)
class Target:
    """The ops port of a service. `service` is None where only the URL is known; `advice` says where else one could ask.

    `ca_file` is trusted in place of the usual authorities; `own`: it is the certificate of a service on this machine, by any name.
    """

    url: str
    service: str | None
    advice: str = ""
    ca_file: str | None = None
    own: bool = False

    def ask(self, path: str, token: str | None = None, *, document: object = None, within: float = 5.0) -> tuple[int, str]:
        """Return the HTTP status and the body. A `document` is sent as JSON, by POST. `within` is in seconds.

        Raises:
            FedroundError: There is no answer.
        """
        import urllib.error
        import urllib.request
        from http.client import HTTPException

        try:
            handlers = [] if (context := self._context()) is None else [urllib.request.HTTPSHandler(context=context)]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
            body = None if document is None else json.dumps(document).encode()
            headers = {} if body is None else {"Content-Type": "application/json"}
            request = urllib.request.Request(checked(self.url).rstrip("/") + path, body, headers)  # noqa: S310 http and https only
            if token:
                request.add_unredirected_header("Authorization", f"Bearer {token}")
            with opener.open(request, timeout=within) as response:
                return response.status, response.read(MAX_ANSWER).decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                answer = error.read(MAX_ANSWER).decode(errors="replace")
            if SPEAKS_TLS in answer:
                raise FedroundError(f"no answer from {self.url}: {SPEAKS_TLS}") from error
            return error.code, answer
        except (OSError, ValueError, HTTPException, FedroundError) as error:
            reason = getattr(error, "reason", error)
            text = self._explained(error) or getattr(reason, "strerror", None) or reason
            raise FedroundError(f"no answer from {self.url}: {text}{self.advice}") from error

    def _context(self) -> "ssl.SSLContext | None":
        """None: that of the usual authorities, or none is needed."""
        if self.ca_file is None or not self.url.startswith("https://"):
            return None
        from fedround.http import tls

        return tls.only(tls.Names("", "", CA_FILE), self.ca_file, check_hostname=not self.own)

    def _explained(self, error: BaseException) -> str:
        if not self.url.startswith("https://"):
            return ""
        from fedround.http import tls

        return tls.explained(error, tls.Names("", "", CA_FILE))


def target(service: str | None, url: str | None, ca_file: str | None, prog: str) -> Target:
    """Whom the arguments of `add_service` mean; `prog` is the command, for advice."""
    if url:
        return Target(url, service, ca_file=ca_file)
    advice = "" if service else f"; `{prog} coordinator` and `aggregator` ask those, --from asks elsewhere"
    service = service or "participant"
    certificate = os.environ.get(CERTIFICATES[service], "").strip()
    url = _url(*OPS[service])
    if not certificate:
        return Target(url, service, advice)
    return Target(url.replace("http:", "https:", 1), service, advice, ca_file or certificate, own=ca_file is None)


def token(given: str | None, service: str | None) -> str | None:
    """The operators' token: that of the flag, else of the service's variables, else of `FEDROUND_TOKEN`.

    Where only a URL is known, no variable of a service is read: that token would be sent to somebody else. Raises `FedroundError`.
    """
    found = given or (service and _of_service(service)) or os.environ.get(ANY_TOKEN, "").strip()
    if found and not all("!" <= character <= "~" for character in found):
        raise FedroundError("the operators' token is sent in a header: visible ASCII characters, no blanks")
    return found or None


def missing(service: str | None) -> str:
    """What to do about a 401."""
    variables = f"{service.upper()}_OPS_TOKEN or {ANY_TOKEN}" if service else ANY_TOKEN
    return f"give the operators' token of the {service or 'service'} by --token, or set {variables}"


def checked(url: str) -> str:
    """The URL. Raises `FedroundError` where it is none."""
    if not url.startswith(("http://", "https://")):
        raise FedroundError(f"{url} is no URL: write it as http://host:port")
    return url


def foreign(path: str, status: int) -> str:
    """What to say of an answer that no service of ours gives."""
    ports = ", ".join(f"{port} ({service})" for service, (_, _, port) in OPS.items())
    return f"not a service of fedround: it answers {path} with {status}; ops ports are by default {ports}"


def decoded(answer: str) -> dict[str, Any] | None:
    """The JSON object; None where it is none."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _of_service(service: str) -> str:
    name = f"{service.upper()}_OPS_TOKEN"
    file = os.environ.get(f"{name}_FILE", "").strip()
    try:
        return os.environ.get(name, "").strip() or (Path(file).read_text().strip() if file else "")
    except (OSError, ValueError) as error:
        raise FedroundError(f"{name}_FILE: {error}") from error


def _url(bind: str, port: str, default: str) -> str:
    host = os.environ.get(bind, "").strip()
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    number = os.environ.get(port, "").strip()
    return f"http://{f'[{host}]' if ':' in host else host}:{number if number.isdecimal() else default}"
