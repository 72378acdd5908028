"""Certificates of a test authority, made with openssl."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from support.tools import tool

_CONFIG = """
[ca]
default_ca = tests
[tests]
database = {directory}/index.txt
serial = {directory}/serial
new_certs_dir = {directory}
default_md = sha256
unique_subject = no
copy_extensions = copyall
policy = names
[names]
commonName = optional
"""


class Pair(NamedTuple):
    """A certificate and its private key."""

    cert: str
    key: str

    def settings(self, prefix: str) -> dict[str, str]:
        return {f"{prefix}_TLS_CERT_FILE": self.cert, f"{prefix}_TLS_KEY_FILE": self.key}


class Authority:
    """An authority that signs certificates. `file` is its own certificate."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory / name
        self._directory.mkdir()
        self.file, self._key = str(self._directory / "ca.pem"), str(self._directory / "ca-key.pem")
        usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", "-x509", *_NEW_KEY, self._key, "-subj", f"/CN={name}", "-days", "2", *usage, "-out", self.file)

    def issue(self, name: str, *alternative: str, common: str | None = None, days: int = 2, age: int = 0, usage: str = "") -> Pair:
        """Issue a certificate, in files with `name`. `alternative`: such as `DNS:localhost`; `usage`: `serverAuth` or `clientAuth`.

        `days`: days until it expires; with -1 it has expired. `age`: days since its start.
        """
        cert, key, request = (str(self._directory / f"{name}{suffix}.pem") for suffix in ("", "-key", "-request"))
        extensions = {"subjectAltName": ",".join(alternative), "extendedKeyUsage": usage, "basicConstraints": "CA:FALSE"}
        added = [word for kind, value in extensions.items() if value for word in ("-addext", f"{kind}={value}")]
        subject = "/" if common == "" else f"/CN={common or name}"
        _openssl("req", "-new", *_NEW_KEY, key, "-subj", subject, *added, "-out", request)
        if age:
            self._sign(request, cert, datetime.now(UTC) - timedelta(age), datetime.now(UTC) + timedelta(days))
        else:
            signed = ("-CA", self.file, "-CAkey", self._key, "-copy_extensions", "copyall", "-days", str(days))
            _openssl("x509", "-req", "-in", request, *signed, "-out", cert)
        return Pair(cert, key)

    def _sign(self, request: str, cert: str, start: datetime, end: datetime) -> None:
        """Sign with a start in the past. `openssl x509` can do this only from OpenSSL 3.4 on."""
        (self._directory / "index.txt").touch()
        config = self._directory / "ca.conf"
        config.write_text(_CONFIG.format(directory=self._directory))
        signed = ("-batch", "-notext", "-config", str(config), "-cert", self.file, "-keyfile", self._key, "-create_serial")
        dates = ("-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}")
        _openssl("ca", *signed, *dates, "-in", request, "-out", cert)

    def server(self, name: str = "server", **options: Any) -> Pair:
        """Return a certificate for services of this machine."""
        return self.issue(name, "DNS:localhost", "IP:127.0.0.1", **options)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")


def _openssl(*arguments: str) -> None:
    subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True)
