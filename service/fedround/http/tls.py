"""TLS: contexts that reload their files, names in certificates, and explanations of failed handshakes. No HTTP library."""

import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fedround.common import files
from fedround.errors import ConfigurationError
from fedround.http.certificates import CERTIFICATE, Validity, client_name, earliest_validity, names

if TYPE_CHECKING:
    from fedround.common.settings import PlatformSettings

LOG = logging.getLogger(__name__)

File = str | PathLike[str]
Make = Callable[[], ssl.SSLContext]

CLIENT = "fedround.client"
"""Key of a connection's `Client` in the extra info of its transport and in the extensions of a scope."""
RETRY = 1.0
"""Seconds between two attempts to reload invalid files."""
DIAGNOSIS = 2.0
"""Time-out in seconds of a second handshake that only reads the names of a certificate."""
MISMATCH = (62, 64)
"""OpenSSL's verification errors for a certificate of another host name or another IP address."""
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")


class Names(NamedTuple):
    """The settings that name the files, for messages."""

    cert: str
    key: str
    ca: str

    @classmethod
    def of(cls, prefix: str, *, server: bool = False) -> Self:
        """Return the names that begin with `prefix`, such as `COORDINATOR_INTERNAL`."""
        return cls(*(f"{prefix}_TLS_{file}_FILE" for file in ("CERT", "KEY", "CLIENT_CA" if server else "CA")))


class Context(ssl.SSLContext):
    """A TLS context that reloads when one of its files changes.

    Each handshake and each request checks the files. A connection with the previous files ends after its next response: no request
    is lost, and a replaced certificate is soon out of use.

    If the new files are invalid, the previous context stays active and the reason is logged: operators often replace a certificate
    and its key one after the other.

    Args:
        names: Settings that name the files.
        make: Makes a context from the files. Raises `ConfigurationError`.
        cert: Certificate and its chain.
        key: Private key of the certificate, if it is in another file.
        ca: CA certificates.
        names_clients: Whether the names in their certificates identify clients.
    """

    def __new__(cls, *_args: object, **_options: object) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(
        self,
        names: Names,
        make: Make,
        *,
        cert: File | None = None,
        key: File | None = None,
        ca: File | None = None,
        names_clients: bool = False,
    ) -> None:
        self.names = names
        self.names_clients = names_clients
        self._make = make
        self._files = [Path(file) for file in (ca, cert, key) if file is not None]
        self._certificates = {setting: Path(file) for setting, file in {names.cert: cert, names.ca: ca}.items() if file is not None}
        self._seen = self._tried = self._stamps()
        self._again = 0.0
        self._lock = threading.Lock()
        self._current, self._validity = make(), self._read_validity()

    def current(self) -> ssl.SSLContext:
        """Return the context for the next handshake, reloaded if the files changed."""
        with self._lock:  # a participant's metrics are read on another thread than its requests
            return self._reloaded()

    def validity(self) -> Mapping[str, Validity]:
        """Return the validity of the certificates in use, by the setting that names the file. Reloads changed files.

        Of several certificates in a file, the one that ends first counts.
        """
        self.current()
        return self._validity

    def _reloaded(self) -> ssl.SSLContext:
        stamps, now = self._stamps(), time.monotonic()
        if stamps != self._seen and (stamps != self._tried or now >= self._again):
            known, self._tried, self._again = stamps == self._tried, stamps, now + RETRY
            try:
                self._current, self._validity = self._make(), self._read_validity()
            except ConfigurationError as error:
                if not known:
                    LOG.error("%s; the previous certificates stay active", error)
            else:
                self._seen = stamps
                LOG.info("certificates reloaded, for new connections: %s", ", ".join(str(file) for file in self._files))
        return self._current

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current().wrap_bio(*args, **kwargs)

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        current = self.current()
        address = sock.getpeername()
        try:
            return current.wrap_socket(sock, *args, **kwargs)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in MISMATCH:
                raise Misnamed(error, _presented_names(current, address)) from error
            raise

    def _read_validity(self) -> Mapping[str, Validity]:
        with suppress(OSError):
            found = {setting: earliest_validity(file.read_bytes()) for setting, file in self._certificates.items()}
            return {setting: validity for setting, validity in found.items() if validity is not None}
        return {}

    def _stamps(self) -> list[files.Stamp | None]:
        return [_stamp(file) for file in self._files]


@dataclass(frozen=True, slots=True)
class Client:
    """A client of a port that requests certificates. `name` is None without one, "" if it does not name a participant."""

    name: str | None
    validity: Validity | None = None
    """Validity of the certificate. None without one."""

    @classmethod
    def of(cls, certificate: Mapping[str, Any]) -> Self:
        """Return the client with this certificate (as `getpeercert` returns it)."""
        dates = (ssl.cert_time_to_seconds(certificate[date]) for date in ("notBefore", "notAfter"))
        return cls(client_name(certificate), Validity(*dates))


class Misnamed(ssl.SSLCertVerificationError):
    """The server's certificate is valid for `names` only, not for the host of the URL."""

    def __init__(self, error: ssl.SSLCertVerificationError, names: Sequence[str]) -> None:
        super().__init__(*error.args)
        self.verify_code = error.verify_code
        self.verify_message = error.verify_message
        self.names = names


def server(
    prefix: str,
    cert: File | None,
    key: File | None,
    client_ca: File | None = None,
    *,
    required: bool = True,
    names_clients: bool = False,
) -> Context | None:
    """Return the TLS context of a port, or None if no file is set.

    Args:
        prefix: Prefix of the settings, for messages.
        cert: Certificate and its chain, in PEM.
        key: Private key, in PEM. None: it is in the same file.
        client_ca: CA certificates for client certificates, in PEM. None: the port does not request client certificates.
        required: Whether to refuse clients without a certificate.
        names_clients: Whether the names in client certificates identify the clients.
    """
    names = Names.of(prefix, server=True)
    if cert is None:
        _unused(names.cert, {names.key: key, names.ca: client_ca})
        return None

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session would skip the verification of the certificate.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        _load_pair(context, names, cert, key, server=True)
        if client_ca is not None:
            _load_authorities(context, names, client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        return context

    return Context(names, make, cert=cert, key=key, ca=client_ca, names_clients=names_clients and client_ca is not None)


def public(settings: "PlatformSettings") -> Context | None:
    """Return the TLS context of a participants' port. With a tokens file, a token may replace a client certificate."""
    return server(
        settings.prefix,
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_client_ca_file,
        required=settings.tokens_file is None,
        names_clients=True,
    )


def operators(settings: "PlatformSettings") -> Context | None:
    """Return the TLS context of an ops port. It requests no client certificates: probes and browsers have none."""
    return server(settings.prefix, settings.tls_cert_file, settings.tls_key_file)


def client(names: Names, ca: File | None, cert: File | None, key: File | None, *, base: Make) -> Context:
    """Return the TLS context of a client.

    Args:
        names: Settings, for messages.
        ca: CA certificates to trust in addition to those of `base`, in PEM.
        cert: Client certificate for servers that request one, in PEM.
        key: Private key, in PEM. None: it is in the same file.
        base: Makes a context with the public CAs.
    """
    if cert is None:
        _unused(names.cert, {names.key: key})

    def make() -> ssl.SSLContext:
        context = base()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if ca is not None:
            _load_authorities(context, names, ca)
        if cert is not None:
            _load_pair(context, names, cert, key, server=False)
        return context

    return Context(names, make, cert=cert, key=key, ca=ca)


def trusting_only(settings: Names, file: File, *, check_hostname: bool = True) -> ssl.SSLContext:
    """Return a client's context that trusts only the certificates in a file: CAs, or the certificate of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_hostname
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_authorities(context, settings, file)
    return context


def _presented_names(context: ssl.SSLContext, address: tuple[Any, ...]) -> list[str]:
    """Return the names of a server's certificate, by another handshake. The error of a failed one does not contain them."""
    import socket

    lenient = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    lenient.check_hostname = False
    for authority in context.get_ca_certs(binary_form=True):
        lenient.load_verify_locations(cadata=authority)
    with suppress(OSError), socket.create_connection(address[:2], DIAGNOSIS) as plain, lenient.wrap_socket(plain) as secured:
        return names(secured.getpeercert() or {})
    return []


# Failures


def explained(error: BaseException, settings: Names) -> str:
    """Return why a TLS handshake failed and how to fix it, or "" if `error` is not about TLS."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    if found is None:
        return ""
    text = re.sub(r"^\[.*?\] |\s*\(_ssl\.c:\d+\)$", "", found.strerror or str(found))
    advice = _untrusted(found, settings) if isinstance(found, ssl.SSLCertVerificationError) else _refused(found, settings)
    return ": ".join(filter(None, (text, advice)))


def _untrusted(error: ssl.SSLCertVerificationError, settings: Names) -> str:
    match error.verify_code:
        case 9 | 10:
            return "renew the server's certificate, or set the clock of this machine"
        case code if code in MISMATCH:
            shown = error.names if isinstance(error, Misnamed) else []
            return (f"it is valid for {', '.join(shown[:10])}; " if shown else "") + "use a name of the certificate in the URL"
    return f"if a private CA signed it, set {settings.ca}"


def _refused(error: ssl.SSLError, settings: Names) -> str:
    reason = error.reason or ""
    match reason:
        case "WRONG_VERSION_NUMBER":
            return "that port does not speak TLS: use http:// in the URL"
        case "TLSV13_ALERT_CERTIFICATE_REQUIRED" | "SSLV3_ALERT_HANDSHAKE_FAILURE" | "TLSV1_ALERT_HANDSHAKE_FAILURE":
            return f"the server requires a client certificate: set {settings.cert}"
        case _ if "_ALERT_" in reason and re.search("CERTIFICATE|UNKNOWN_CA", reason):
            return f"the server does not accept the certificate of {settings.cert}"
    return ""


# Files


def _load_pair(context: ssl.SSLContext, settings: Names, cert: File, key: File | None, *, server: bool) -> None:
    _must_hold(CERTIFICATE, "certificate", settings.cert, cert)
    if key is None:
        _must_hold(_PRIVATE_KEY, f"private key, and {settings.key} is not set", settings.cert, cert)
    else:
        _must_hold(_PRIVATE_KEY, "private key", settings.key, key)
    with _usable(f"{settings.cert} or {settings.key}", cert):
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError(f"{settings.key}: {key or cert}: the key does not match the certificate {cert}") from error
            raise
        except _EncryptedKey as error:
            remedy = f"decrypt it: openssl pkey -in {key or cert} -out FILE"
            raise ConfigurationError(f"{settings.key}: {key or cert}: the key is encrypted; {remedy}") from error
        if flaw := _flaw(cert, key, server=server):
            LOG.warning("%s: %s: peers will refuse it: %s", settings.cert, cert, flaw)


class _EncryptedKey(Exception):
    pass


def _no_password() -> str:
    """Raise: a service cannot prompt for a password."""
    raise _EncryptedKey


def _load_authorities(context: ssl.SSLContext, settings: Names, ca: File) -> None:
    _must_hold(CERTIFICATE, "certificate", settings.ca, ca)
    with _usable(settings.ca, ca):
        context.load_verify_locations(ca)


def _must_hold(pattern: re.Pattern[bytes], what: str, setting: str, file: File) -> None:
    with _usable(setting, file):
        if not pattern.search(Path(file).read_bytes()):
            raise ConfigurationError(f"{setting}: {file}: there is no {what} in it (PEM)")


@contextmanager
def _usable(setting: str, file: File) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl's errors too
        raise ConfigurationError(f"{setting}: {file}: {error.strerror}") from error


def _unused(cert: str, others: Mapping[str, File | None]) -> None:
    for setting, file in others.items():
        if file is not None:
            raise ConfigurationError(f"{cert}: is not set, but {setting} is")


def _flaw(cert: File, key: File | None, *, server: bool) -> str:
    """Return why peers will refuse a certificate, such as "certificate has expired", or "", by a handshake in memory."""
    ends = {}
    for protocol, verifies in {ssl.PROTOCOL_TLS_SERVER: not server, ssl.PROTOCOL_TLS_CLIENT: server}.items():
        ends[protocol] = context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # this certificate is its own authority here
        context.load_verify_locations(cert)
        context.load_cert_chain(cert, key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = ends[ssl.PROTOCOL_TLS_SERVER].wrap_bio(up, down, server_side=True)
    asking = ends[ssl.PROTOCOL_TLS_CLIENT].wrap_bio(down, up)
    try:
        for end in (asking, serving) * 3:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    return ""


def _stamp(file: Path) -> files.Stamp | None:
    try:
        return files.stamp(file.stat())
    except OSError:
        return None
