"""Requests to the ops port of a running service: its address, the token, and the meaning of the response.

This module imports neither httpx nor the settings: a probe runs every few seconds, and importing urllib takes a tenth of the time.
"""

import json
import os
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedround.common.wire import SPEAKS_TLS
from fedround.errors import FedroundError

if TYPE_CHECKING:
    import ssl

MAX_RESPONSE = 64 << 20
"""Maximum number of bytes of a response. A status may name every participant."""
ANY_TOKEN = "FEDROUND_TOKEN"  # noqa: S105 the name of a variable
"""Variable with the operators' token, for any service."""
OPS = {
    "participant": ("PARTICIPANT_OPS_BIND", "PARTICIPANT_OPS_PORT", "8080"),
    "coordinator": ("COORDINATOR_BIND", "COORDINATOR_OPS_PORT", "9081"),
    "aggregator": ("AGGREGATOR_BIND", "AGGREGATOR_OPS_PORT", "9082"),
}
"""Variables with the address and the port of each service's ops port, and its default port."""
CERTIFICATES = {
    "participant": "PARTICIPANT_OPS_TLS_CERT_FILE",
    "coordinator": "COORDINATOR_TLS_CERT_FILE",
    "aggregator": "AGGREGATOR_TLS_CERT_FILE",
}
"""Variables that name the TLS certificate of each ops port."""
CA_FILE = "--ca-file"
RUNS, HISTORY = "/runs", "/history"
"""Paths of a coordinator's runs, and of the rounds of a run."""


def add_service(parser: ArgumentParser) -> None:
    """Add the arguments that select an ops port."""
    parser.add_argument("service", nargs="?", choices=OPS, help="service on this machine [default participant]")
    parser.add_argument(
        "--from", dest="url", metavar="URL", help="URL of the ops port [default: from the environment variables of the service]"
    )
    add_ca_file(parser)


def add_ca_file(parser: ArgumentParser) -> None:
    """Add the flag for the CA of the service's certificate."""
    parser.add_argument(CA_FILE, metavar="FILE", help="with https://, the only CA certificates (PEM) to trust")


def add_token(parser: ArgumentParser) -> None:
    """Add the flag for the operators' token."""
    parser.add_argument(
        "--token", help=f"operators' token of the service [default: its ..._OPS_TOKEN or ..._OPS_TOKEN_FILE, else {ANY_TOKEN}]"
    )


@dataclass(frozen=True)
class Target:
    """The ops port of a service.

    Attributes:
        url: URL of the port.
        service: Name of the service. None: only the URL is known.
        advice: Advice for an error message.
        ca_file: PEM file with the only certificates to trust. None: the public CAs.
        local: Whether `ca_file` is the certificate of a service on this machine: host names are not checked then.
    """

    url: str
    service: str | None
    advice: str = ""
    ca_file: str | None = None
    local: bool = False

    def request(
        self, path: str, token: str | None = None, *, document: object = None, within: float = 5.0, into: IO[bytes] | None = None
    ) -> tuple[int, str]:
        """Send a request.

        Args:
            path: Path of the URL.
            token: The operators' token.
            document: Data to send as JSON with POST. None: send a GET.
            within: Seconds to wait for the response, and for each further part of it.
            into: File for the body of a successful response, of any size. None: the body is returned.

        Returns:
            The HTTP status, and the body unless it is in the file.

        Raises:
            FedroundError: There is no response.
        """
        import urllib.error
        import urllib.request
        from http.client import HTTPException
        from shutil import copyfileobj

        try:
            handlers = [] if (context := self._context()) is None else [urllib.request.HTTPSHandler(context=context)]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
            body = None if document is None else json.dumps(document).encode()
            headers = {} if body is None else {"Content-Type": "application/json"}
            request = urllib.request.Request(check_url(self.url).rstrip("/") + path, body, headers)  # noqa: S310 http and https only
            if token:
                request.add_unredirected_header("Authorization", f"Bearer {token}")
            with opener.open(request, timeout=within) as response:
                if into is not None:
                    copyfileobj(response, into)
                    return response.status, ""
                return response.status, response.read(MAX_RESPONSE).decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                refusal = error.read(MAX_RESPONSE).decode(errors="replace")
            if SPEAKS_TLS in refusal:
                raise FedroundError(f"no answer from {self.url}: {SPEAKS_TLS}") from error
            return error.code, refusal
        except (OSError, ValueError, HTTPException, FedroundError) as error:
            reason = getattr(error, "reason", error)
            text = self._explained(error) or getattr(reason, "strerror", None) or reason
            raise FedroundError(f"no answer from {self.url}: {text}{self.advice}") from error

    def _context(self) -> "ssl.SSLContext | None":
        """Return a TLS context for `ca_file`, or None for the default one."""
        if self.ca_file is None or not self.url.startswith("https://"):
            return None
        from fedround.http import tls

        return tls.trusting_only(tls.Names("", "", CA_FILE), self.ca_file, check_hostname=not self.local)

    def _explained(self, error: BaseException) -> str:
        if not self.url.startswith("https://"):
            return ""
        from fedround.http import tls

        return tls.explained(error, tls.Names("", "", CA_FILE))


def target(service: str | None, url: str | None, ca_file: str | None, prog: str) -> Target:
    """Return the target that the arguments of `add_service` select. `prog` is the command, for advice."""
    if url:
        return Target(url, service, ca_file=ca_file)
    advice = "" if service else f"; for another service: `{prog} coordinator`, `{prog} aggregator` or --from URL"
    service = service or "participant"
    certificate = os.environ.get(CERTIFICATES[service], "").strip()
    url = _url(*OPS[service])
    if not certificate:
        return Target(url, service, advice)
    return Target(url.replace("http:", "https:", 1), service, advice, ca_file or certificate, local=ca_file is None)


def token(given: str | None, service: str | None) -> str | None:
    """Return the operators' token: from the flag, else the service's variables, else `FEDROUND_TOKEN`.

    If only a URL is known, it does not read the variables of a service: another server would receive that token.

    Raises:
        FedroundError: The token is invalid, or its file cannot be read.
    """
    found = given or (service and _token_of(service)) or os.environ.get(ANY_TOKEN, "").strip()
    if found and not all("!" <= character <= "~" for character in found):
        raise FedroundError("the operators' token must consist of visible ASCII characters, without spaces")
    return found or None


def token_advice(service: str | None) -> str:
    """Return the advice for a 401."""
    variables = f"{service.upper()}_OPS_TOKEN or {ANY_TOKEN}" if service else ANY_TOKEN
    return f"give the operators' token of the {service or 'service'} by --token, or set {variables}"


def check_url(url: str) -> str:
    """Return the URL. Raises `FedroundError` if it is invalid."""
    if not url.startswith(("http://", "https://")):
        raise FedroundError(f"invalid URL {url}: write it as http://host:port")
    return url


def not_fedround(path: str, status: int) -> str:
    """Return the message for a response from another server."""
    ports = ", ".join(f"{port} ({service})" for service, (_, _, port) in OPS.items())
    return f"not an ops port of fedround: {path} returned {status}; default ops ports: {ports}"


def decode(body: str) -> dict[str, Any] | None:
    """Return the JSON object, or None if the text is not one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _token_of(service: str) -> str:
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
