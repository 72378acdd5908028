"""When the certificates of a file are valid. `ssl` shows it only after a handshake."""

import re
from binascii import a2b_base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([^-]*)")
_SEQUENCE, _UTC_TIME = 0x30, 0x17


class Validity(NamedTuple):
    """When a certificate begins and ends to be valid, in Unix time."""

    not_before: float
    not_after: float


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
