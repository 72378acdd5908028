"""Which aggregators a participant trusts with its token: those on its coordinator's host, or beside it. No I/O.

1. An aggregator that the participant's own settings name is trusted: as `PARTICIPANT_AGGREGATOR_URL`, or in
   `PARTICIPANT_AGGREGATOR_ALLOW`, by its name or by `*.` and a parent of it.
2. Else, from a coordinator with https, the aggregator needs https too, or to be on this machine.
3. The coordinator's own host is trusted, whatever the port. `localhost`, 127.0.0.0/8 and `::1` are one host.
4. Names without a dot are trusted by one another: they come from one search domain, such as a namespace or a Compose project.
   Names of Kubernetes Services are trusted in the same namespace.
5. Names below the coordinator's host, or below its parent, are trusted, if that has two labels or more: `agg.example.org` by who
   asks `fl.example.org`. A parent such as `co.uk`, below which anybody registers, needs one more.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f.:]*:[0-9a-f.:]*")
"""What may be in a list of hosts: a name, `*.` and a name, an address, or `*` for any."""

_SERVICE = re.compile(r"\.svc(\.cluster\.local)?$")
_REGISTRY = re.compile(r"(ac|co|com|edu|gov|net|or|org)\.[a-z]{2}")


def trusted(url: str, coordinator_url: str, allow: Sequence[str] = ()) -> bool:
    """Whether a participant of that coordinator may send its token to `url`. `allow`: see rule 1."""
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
        # A short name of the coordinator is of the participant's own namespace, which only the cluster knows.
        return "." not in known or _parent(_SERVICE.sub("", host)) == _parent(_SERVICE.sub("", known))
    return any(_is_one_owners(zone) for zone in (known, _parent(known)) if host == zone or host.endswith(f".{zone}"))


def _is_one_owners(parent: str) -> bool:
    return parent.count(".") >= (2 if _REGISTRY.fullmatch(parent) else 1)


_THIS_MACHINE = "localhost"


def _host(name: str | None) -> str:
    host = (name or "").rstrip(".").lower()
    try:
        return _THIS_MACHINE if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return host


def _is_name(host: str) -> bool:
    return host != _THIS_MACHINE and ":" not in host and not host.replace(".", "").isdigit()


def _parent(host: str) -> str:
    return host.partition(".")[2]


def _fits(host: str, pattern: str) -> bool:
    return pattern == "*" or host == _host(pattern) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
