"""Certificates: the names in them, and when those of a file are valid (`ssl` shows that only after a handshake)."""

import re
from binascii import a2b_base64
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fedround.common.wire import parse_name

CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([^-]*)")
_SEQUENCE, _UTC_TIME = 0x30, 0x17


class Validity(NamedTuple):
    """When a certificate begins and ends to be valid, in Unix time."""

    not_before: float
    not_after: float


def names(certificate: Mapping[str, Any], only: str = "") -> list[str]:
    """Return alternative names (`only` those of a kind) and common names of a certificate, as `getpeercert` returns it."""
    alternative = [value for kind, value in certificate.get("subjectAltName", ()) if only in ("", kind)]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return [*alternative, *common]


def client_name(certificate: Mapping[str, Any]) -> str:
    """Return the participant's name in a certificate: the first valid DNS name, else the common name, else ""."""
    return next((name for name in names(certificate, "DNS") if parse_name(name) is not None), "")


def earliest_validity(pem: bytes) -> Validity | None:
    """Return the validity of the certificate that ends first; None without one that can be read."""
    found = [_validity(block) for block in CERTIFICATE.findall(pem)]
    return min((validity for validity in found if validity is not None), key=lambda validity: validity.not_after, default=None)


def _validity(block: bytes) -> Validity | None:
    """Return the validity of a certificate, base64 of its DER (RFC 5280, section 4.1)."""
    try:
        (_, certificate), *_ = _elements(a2b_base64(block))
        (_, signed), *_ = _elements(certificate)
        _algorithm, _issuer, validity, *_ = (content for tag, content in _elements(signed) if tag == _SEQUENCE)
        return Validity(*(_time(*each) for each in _elements(validity)))
    except (IndexError, TypeError, ValueError):
        return None


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each element."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= 0x80:
            size = length - 0x80
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    text = content.decode()
    if tag == _UTC_TIME:
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
