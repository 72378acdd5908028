"""Which proxy the environment's variables name for a URL, as people write them for curl and others. No I/O.

The rules:

1. What is on this machine (`localhost`, 127.0.0.0/8, ::1) needs no proxy.
2. `NO_PROXY` lists hosts that need none either, separated by commas or blanks. An item is `*`, a host, a pattern with `*`, an
   address, or a network. A host stands for those below it too, with or without a dot or `*.` before it. An IPv6 address may have
   brackets. An item with a port means that port only. An item that is none of these fits nothing.
3. Else the proxy is that of `HTTP_PROXY` or `HTTPS_PROXY`, by the URL's scheme, or else of `ALL_PROXY`. Its scheme may be missing.
4. A name in lower case beats the same in upper case. Empty is not set. `HTTP_PROXY` does not count where `REQUEST_METHOD` is set:
   clients of a CGI script can set it by a header.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

VARIABLES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"})
"""Those that matter, in lower case."""
_PORTS = {"http": 80, "https": 443}
_VALID = re.compile(r"(https?|socks5h?)://([^/@\s]*@)?(\[[0-9a-f:.]+\]|[^][/@:\s]+)(:[0-9]{1,5})?/?", re.IGNORECASE)
_PORT = re.compile(r"(\[.*\]|[^:]*):([0-9]{1,5})")


class Proxy(NamedTuple):
    """`variable` names it, for messages. Its `url` may hold a password."""

    variable: str
    url: str

    @property
    def is_valid(self) -> bool:
        """Whether the URL is one of a proxy of a known kind."""
        return _VALID.fullmatch(self.url) is not None


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy through which `url` is asked; None: directly."""
    asked = urlsplit(url)
    host = (asked.hostname or "").rstrip(".")
    found = _named(asked.scheme, environ) or _named("all", environ)
    if found is None or _is_here(host):
        return None
    items = re.split(r"[\s,]+", _value("no_proxy", environ)[1])
    port = asked.port or _PORTS.get(asked.scheme, 0)
    return None if any(_fits(item.lower(), host, port) for item in items if item) else found


def _named(scheme: str, environ: Mapping[str, str]) -> Proxy | None:
    variable, value = _value(f"{scheme}_proxy", environ)
    if not value or (variable == "HTTP_PROXY" and "REQUEST_METHOD" in environ):
        return None
    kind, _, rest = value.rpartition("://")
    return Proxy(variable, f"{kind.lower() or 'http'}://{rest}")


def _value(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    found = ((variable, environ.get(variable, "").strip()) for variable in (name, name.upper()))
    return next((one for one in found if one[1]), (name.upper(), ""))


def _is_here(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host == "localhost" or host.endswith(".localhost")


def _fits(item: str, host: str, port: int) -> bool:
    item = item.rpartition("://")[2].rstrip("/")
    if with_port := _PORT.fullmatch(item):
        item = with_port[1]
        if int(with_port[2]) != port:
            return False
    item, address = re.sub(r"[\[\]]", "", item), _address(host)
    if address is not None:
        try:
            return address in ip_network(item, strict=False)
        except ValueError:
            return "*" in item and fnmatchcase(host, item)
    domain = item.removeprefix("*").strip(".")
    if "*" in domain or not domain:
        return fnmatchcase(host, item)
    return host == domain or host.endswith(f".{domain}")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
