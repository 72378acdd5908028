"""Certificates and keys that a server loads at start."""

import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fedround.errors import ConfigurationError
from fedround.http import tls
from fedround.http.certificates import Validity, earliest_validity
from support.certificates import Authority, Pair
from support.tools import tool


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.server("serving")


def test_unusable_tls_files_are_configuration_errors_that_name_the_setting(authority: Authority, tmp_path: Path) -> None:
    pair = authority.server("serving")
    (nothing := tmp_path / "nothing.pem").write_text("nothing")
    other = authority.server("another")
    cases: list[tuple[tuple[Any, Any, Any], str]] = [
        (("/nowhere", pair.key, None), "A_TLS_CERT_FILE: /nowhere: No such file"),
        ((pair.cert, "/nowhere", None), "A_TLS_KEY_FILE: /nowhere: No such file"),
        ((nothing, pair.key, None), "A_TLS_CERT_FILE: .*nothing.pem: there is no certificate in it"),
        ((pair.cert, nothing, None), "A_TLS_KEY_FILE: .*nothing.pem: there is no private key in it"),
        ((pair.cert, None, None), "A_TLS_CERT_FILE: .*no private key, and A_TLS_KEY_FILE is not set"),
        ((pair.cert, other.key, None), "A_TLS_KEY_FILE: .*does not match the certificate"),
        ((pair.cert, pair.key, "/nowhere"), "A_TLS_CLIENT_CA_FILE: /nowhere: No such file"),
        ((pair.cert, pair.key, nothing), "A_TLS_CLIENT_CA_FILE: .*no certificate"),
        ((None, pair.key, None), "A_TLS_CERT_FILE: is not set, but A_TLS_KEY_FILE is"),
        ((None, None, authority.file), "A_TLS_CERT_FILE: is not set, but A_TLS_CLIENT_CA_FILE is"),
        ((tmp_path, pair.key, None), "A_TLS_CERT_FILE: .*Is a directory"),
    ]
    for files, complaint in cases:
        with pytest.raises(ConfigurationError, match=complaint):
            tls.server("A", *files)


@pytest.mark.parametrize(
    ("options", "flaw"),
    [
        ({"days": -1}, "certificate has expired"),
        ({"usage": "clientAuth"}, "unsuitable certificate purpose"),
        ({"usage": "serverAuth"}, ""),
    ],
)
def test_a_certificate_that_peers_will_refuse_is_a_warning(
    authority: Authority, options: dict[str, Any], flaw: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.server("flawed", **options)
    assert tls.server("A", *pair)
    assert caplog.messages == ([f"A_TLS_CERT_FILE: {pair.cert}: peers will refuse it: {flaw}"] if flaw else [])


# When certificates end


def dates(cert: str) -> Validity:
    """Return the validity of a certificate, as openssl shows it."""
    shown = subprocess.run([tool("openssl"), "x509", "-in", cert, "-noout", "-dates"], capture_output=True, text=True, check=True)
    return Validity(*(float(ssl.cert_time_to_seconds(line.partition("=")[2])) for line in shown.stdout.splitlines()))


@pytest.mark.parametrize(("days", "age"), [(-1, 0), (10, 355), (20_000, 0)])  # beyond 2050, dates have another format
def test_the_validity_of_a_certificate_is_that_of_openssl(authority: Authority, days: int, age: int) -> None:
    pair = authority.server(f"days{days}", days=days, age=age)
    context = tls.server("A", *pair, client_ca=authority.file)
    assert context is not None
    assert context.validity() == {"A_TLS_CERT_FILE": dates(pair.cert), "A_TLS_CLIENT_CA_FILE": dates(authority.file)}
    assert abs(dates(pair.cert).not_after - time.time() - 86400 * days) < 3600
    assert abs(time.time() - 86400 * age - dates(pair.cert).not_before) < 3600


def test_the_validity_of_a_file_is_that_of_the_certificate_that_expires_first(
    authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    short = authority.server("short", days=1)
    trusted = subprocess.run([tool("openssl"), "x509", "-in", short.cert, "-trustout"], capture_output=True, text=True, check=True)
    (bundle := tmp_path / "bundle.pem").write_text(f"# ours\n{Path(authority.file).read_text()}{trusted.stdout}")
    assert "TRUSTED CERTIFICATE" in bundle.read_text()
    context = tls.client(tls.Names.of("B"), bundle, pair.cert, pair.key, base=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    assert context.validity() == {"B_TLS_CERT_FILE": dates(pair.cert), "B_TLS_CA_FILE": dates(short.cert)}


def test_the_validity_is_that_of_the_files_in_use(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """Also without a handshake after a replacement, and while certificate and key do not match."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    new = authority.server("new", days=30)
    shutil.copy(pair.cert, cert)
    shutil.copy(pair.key, key)
    context = tls.server("A", cert, key)
    assert context is not None
    assert context.validity()["A_TLS_CERT_FILE"] == dates(pair.cert)
    shutil.copy(new.cert, cert)
    assert context.validity()["A_TLS_CERT_FILE"] == dates(pair.cert)
    shutil.copy(new.key, key)
    assert context.validity()["A_TLS_CERT_FILE"] == dates(new.cert)


@pytest.mark.parametrize("block", [b"", b"MA==", b"MAA=", b"MIL/////", b"not base64", b"MAYwBDACMAA=", bytes(range(32, 44))])
def test_an_invalid_certificate_has_no_validity(block: bytes) -> None:
    assert earliest_validity(b"-----BEGIN CERTIFICATE-----\n" + block + b"\n-----END CERTIFICATE-----\n") is None
