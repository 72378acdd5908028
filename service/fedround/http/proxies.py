"""The proxy for a URL, from the environment variables that curl and other tools use. No I/O.

1. Hosts on this machine (`localhost`, 127.0.0.0/8, ::1) need no proxy.
2. `NO_PROXY` lists other hosts that need none, separated by commas or spaces. An item is `*`, a host, a pattern with `*`, an IP
   address, or a network. A host includes its subdomains, with or without a leading dot or `*.`. An IPv6 address may have brackets.
   An item with a port applies to that port only. Any other item matches nothing.
3. Otherwise `HTTP_PROXY` or `HTTPS_PROXY` applies, by the URL's scheme, or else `ALL_PROXY`. The proxy's scheme may be missing.
4. A lower-case variable takes precedence over its upper-case form. An empty one counts as unset. `HTTP_PROXY` is ignored if
   `REQUEST_METHOD` is set: clients of a CGI script can set it with a header.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from fedround.http.hosts import is_loopback

VARIABLES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"})
"""Names of the variables, in lower case."""
_PORTS = {"http": 80, "https": 443}
_VALID = re.compile(r"(https?|socks5h?)://([^/@\s]*@)?(\[[0-9a-f:.]+\]|[^][/@:\s]+)(:[0-9]{1,5})?/?", re.IGNORECASE)
_PORT = re.compile(r"(\[.*\]|[^:]*):([0-9]{1,5})")


class Proxy(NamedTuple):
    """A proxy, and the variable that names it, for messages. The `url` may contain a password."""

    variable: str
    url: str

    @property
    def is_valid(self) -> bool:
        """Whether the URL is valid and its scheme is supported."""
        return _VALID.fullmatch(self.url) is not None


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for requests to `url`, or None if they need none."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    found = _configured(parts.scheme, environ) or _configured("all", environ)
    if found is None or is_loopback(host) or host.endswith(".localhost"):
        return None
    items = re.split(r"[\s,]+", _value("no_proxy", environ)[1])
    port = parts.port or _PORTS.get(parts.scheme, 0)
    return None if any(_fits(item.lower(), host, port) for item in items if item) else found


def _configured(scheme: str, environ: Mapping[str, str]) -> Proxy | None:
    variable, value = _value(f"{scheme}_proxy", environ)
    if not value or (variable == "HTTP_PROXY" and "REQUEST_METHOD" in environ):
        return None
    kind, _, rest = value.rpartition("://")
    return Proxy(variable, f"{kind.lower() or 'http'}://{rest}")


def _value(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    found = ((variable, environ.get(variable, "").strip()) for variable in (name, name.upper()))
    return next((one for one in found if one[1]), (name.upper(), ""))


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
