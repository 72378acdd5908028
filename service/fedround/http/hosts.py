"""The aggregators that a participant trusts with its token: those on its coordinator's host, or related to it. No I/O.

1. A participant trusts an aggregator that its own settings name: in `PARTICIPANT_AGGREGATOR_URL`, or in
   `PARTICIPANT_AGGREGATOR_ALLOW`, as its name or as `*.` and a parent domain.
2. Otherwise, if the coordinator uses https, the aggregator must use https too, or run on this machine.
3. The participant trusts the coordinator's own host, on any port. `localhost`, 127.0.0.0/8 and `::1` are one host.
4. Names without a dot trust each other: they come from one search domain, such as a namespace or a Compose project. Names of
   Kubernetes Services trust each other within a namespace.
5. The participant trusts names below the coordinator's host or below its parent domain, if that has at least two labels. With the
   coordinator `fl.example.org`, it trusts `agg.example.org`. A registry's domain such as `co.uk` needs one more label.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f.:]*:[0-9a-f.:]*")
"""An item of a list of hosts: a name, `*.` and a name, an IP address, or `*` for any host."""

_SERVICE = re.compile(r"\.svc(\.cluster\.local)?$")
_REGISTRY = re.compile(r"(ac|co|com|edu|gov|net|or|org)\.[a-z]{2}")


def trusted(url: str, coordinator_url: str, allow: Sequence[str] = ()) -> bool:
    """Return whether a participant of this coordinator may send its token to `url`. `allow`: see rule 1."""
    aggregator, coordinator = urlsplit(url), urlsplit(coordinator_url)
    host, known = _host(aggregator.hostname), _host(coordinator.hostname)
    if any(_fits(host, pattern) for pattern in allow):
        return True
    if coordinator.scheme == "https" and aggregator.scheme != "https" and host != _THIS_MACHINE:
        return False
    return host == known or (_is_name(host) and _is_name(known) and _related(host, known))


def _related(host: str, known: str) -> bool:
    if "." not in host and "." not in known:
        return True
    if _SERVICE.search(host):
        # A short name of the coordinator is in the participant's namespace, which only the cluster knows.
        return "." not in known or _parent(_SERVICE.sub("", host)) == _parent(_SERVICE.sub("", known))
    return any(_has_one_owner(zone) for zone in (known, _parent(known)) if host == zone or host.endswith(f".{zone}"))


def _has_one_owner(domain: str) -> bool:
    return domain.count(".") >= (2 if _REGISTRY.fullmatch(domain) else 1)


_THIS_MACHINE = "localhost"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == _THIS_MACHINE


def _host(name: str | None) -> str:
    host = (name or "").rstrip(".").lower()
    return _THIS_MACHINE if is_loopback(host) else host


def _is_name(host: str) -> bool:
    return host != _THIS_MACHINE and ":" not in host and not host.replace(".", "").isdigit()


def _parent(host: str) -> str:
    return host.partition(".")[2]


def _fits(host: str, pattern: str) -> bool:
    return pattern == "*" or host == _host(pattern) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
