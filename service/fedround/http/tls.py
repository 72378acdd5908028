"""TLS: contexts that follow their files, the names in certificates, and what a failed handshake means. Imports no HTTP library."""

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fedround.common.wire import parse_name
from fedround.errors import ConfigurationError

if TYPE_CHECKING:
    from fedround.common.settings import PlatformSettings

LOG = logging.getLogger(__name__)

File = str | PathLike[str]
Make = Callable[[], ssl.SSLContext]

CLIENT = "fedround.client"
"""What a connection's `Client` is called where the transport and the scope of a request tell more about it."""
RETRY = 1.0
"""Seconds between two attempts to read files that could not be used."""
DIAGNOSIS = 2.0
"""Seconds for a second handshake that only asks which names a certificate has."""
MISMATCH = (62, 64)
"""OpenSSL's verification errors: the certificate is for another host name, or for another address."""
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")
_CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")


class Names(NamedTuple):
    """The settings that name the files, for messages."""

    cert: str
    key: str
    ca: str

    @classmethod
    def of(cls, prefix: str, *, server: bool = False) -> Self:
        """Those that begin with `prefix`, such as `COORDINATOR_INTERNAL`."""
        return cls(*(f"{prefix}_TLS_{file}_FILE" for file in ("CERT", "KEY", "CLIENT_CA" if server else "CA")))


class Context(ssl.SSLContext):
    """A context that `make` makes, and makes again when one of `files` has changed.

    Each handshake and each request looks at the files. A connection that was made with former ones ends with its next answer: no
    request is lost, and what is not accepted any more is soon not used any more.

    If the new files cannot be used, the former context stays in force, and the log says why: a certificate and its key are often
    replaced one after the other.

    Args:
        names: The settings that name the files.
        make: Makes it of the files. Raises `ConfigurationError`.
        files: Those that are looked at.
        names_clients: Whether clients are known by the names in their certificates.
    """

    def __new__(cls, *_args: object, **_options: object) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, names: Names, make: Make, files: Sequence[File], *, names_clients: bool = False) -> None:
        self.names = names
        self.names_clients = names_clients
        self._make = make
        self._files = [Path(file) for file in files]
        self._seen = self._tried = self._stamps()
        self._again = 0.0
        self._current = make()

    def current(self) -> ssl.SSLContext:
        """The context for the next handshake."""
        stamps, now = self._stamps(), time.monotonic()
        if stamps != self._seen and (stamps != self._tried or now >= self._again):
            known, self._tried, self._again = stamps == self._tried, stamps, now + RETRY
            try:
                self._current = self._make()
            except ConfigurationError as error:
                if not known:
                    LOG.error("%s; the former certificates stay in force", error)
            else:
                self._seen = stamps
                LOG.info("%s: read again, for new connections", ", ".join(str(file) for file in self._files))
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
                raise Misnamed(error, _shown(current, address)) from error
            raise

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


@dataclass(frozen=True, slots=True)
class Client:
    """A client on a port that asks for certificates. `name`: None without a certificate, "" if that names no participant."""

    name: str | None


class Misnamed(ssl.SSLCertVerificationError):
    """The certificate is for other `names` than the one that was asked for."""

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
    needed: bool = True,
    names_clients: bool = False,
) -> Context | None:
    """What a port serves with; None where no file is set.

    Args:
        prefix: That of the settings, for messages.
        cert: The certificate and what it is signed by, PEM.
        key: Its private key, PEM; None: it is in the same file.
        client_ca: The authorities whose certificates clients are asked for, PEM; None: nobody is asked.
        needed: A client without a certificate is refused.
        names_clients: Clients are known by the names in their certificates, where these are asked for.
    """
    names = Names.of(prefix, server=True)
    if cert is None:
        _unused(names.cert, {names.key: key, names.ca: client_ca})
        return None

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session is one whose certificate nobody has looked at again.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        _load_pair(context, names, cert, key, server=True)
        if client_ca is not None:
            _load_authorities(context, names, client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if needed else ssl.CERT_OPTIONAL
        return context

    files = [file for file in (cert, key, client_ca) if file is not None]
    return Context(names, make, files, names_clients=names_clients and client_ca is not None)


def public(settings: "PlatformSettings") -> Context | None:
    """What a service's port for participants serves with. A token of its own stands in for a participant's certificate."""
    return server(
        settings.prefix,
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_client_ca_file,
        needed=settings.tokens_file is None,
        names_clients=True,
    )


def operators(settings: "PlatformSettings") -> Context | None:
    """What a service's port for operators serves with: probes and browsers have no certificates."""
    return server(settings.prefix, settings.tls_cert_file, settings.tls_key_file)


def client(names: Names, ca: File | None, cert: File | None, key: File | None, *, base: Make) -> Context:
    """What is asked with.

    Args:
        names: The settings, for messages.
        ca: Authorities that are trusted beside those of `base`, PEM.
        cert: The certificate that is shown to a server that asks for one, PEM.
        key: Its private key, PEM; None: it is in the same file.
        base: Makes a context with the usual authorities.
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

    return Context(names, make, [file for file in (ca, cert, key) if file is not None])


def only(settings: Names, file: File, *, check_hostname: bool = True) -> ssl.SSLContext:
    """A context for a client that trusts what the file has, authorities or a server's own certificate, and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_hostname
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_authorities(context, settings, file)
    return context


# Names


def names(certificate: Mapping[str, Any]) -> list[str]:
    """All names of a certificate (as `getpeercert` returns it): alternative names first, then common names."""
    alternative = [value for _, value in certificate.get("subjectAltName", ())]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return [*alternative, *common]


def client_name(certificate: Mapping[str, Any]) -> str:
    """The name that a certificate proves: the first DNS name that is a participant's name, else the common name; else ""."""
    dns = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return next((name for name in [*dns, *common] if parse_name(name) is not None), "")


def _shown(context: ssl.SSLContext, address: tuple[Any, ...]) -> list[str]:
    """The names of the certificate that a server shows: the handshake that failed does not tell them."""
    import socket

    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    for authority in context.get_ca_certs(binary_form=True):
        asking.load_verify_locations(cadata=authority)
    with suppress(OSError), socket.create_connection(address[:2], DIAGNOSIS) as plain, asking.wrap_socket(plain) as shown:
        return names(shown.getpeercert() or {})
    return []


# Failures


def explained(error: BaseException, settings: Names) -> str:
    """What has failed in a TLS handshake, and what mends it; "" if `error` has nothing to do with TLS."""
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
        case 62 | 64:
            shown = error.names if isinstance(error, Misnamed) else []
            return (f"it is valid for {', '.join(shown[:10])}; " if shown else "") + "use a name of the certificate in the URL"
    return f"if an authority of your own signed it, set {settings.ca}"


def _refused(error: ssl.SSLError, settings: Names) -> str:
    reason = error.reason or ""
    match reason:
        case "WRONG_VERSION_NUMBER":
            return "that port does not speak TLS: write http:// in the URL"
        case "TLSV13_ALERT_CERTIFICATE_REQUIRED" | "SSLV3_ALERT_HANDSHAKE_FAILURE" | "TLSV1_ALERT_HANDSHAKE_FAILURE":
            return f"the server asks for a certificate: set {settings.cert}"
        case _ if "_ALERT_" in reason and re.search("CERTIFICATE|UNKNOWN_CA", reason):
            return f"the server does not accept the certificate of {settings.cert}"
    return ""


# Files


def _load_pair(context: ssl.SSLContext, settings: Names, cert: File, key: File | None, *, server: bool) -> None:
    _must_hold(_CERTIFICATE, "certificate", settings.cert, cert)
    if key is None:
        _must_hold(_PRIVATE_KEY, f"private key, and {settings.key} is not set", settings.cert, cert)
    else:
        _must_hold(_PRIVATE_KEY, "private key", settings.key, key)
    with _usable(f"{settings.cert} or {settings.key}", cert):
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError(f"{settings.key}: {key or cert}: the key does not fit the certificate {cert}") from error
            raise
        except _EncryptedKey as error:
            remedy = f"decrypt it: openssl pkey -in {key or cert} -out FILE"
            raise ConfigurationError(f"{settings.key}: {key or cert}: the key is encrypted; {remedy}") from error
        if flaw := _flaw(cert, key, server=server):
            LOG.warning("%s: %s: peers will refuse it: %s", settings.cert, cert, flaw)


class _EncryptedKey(Exception):
    pass


def _no_password() -> str:
    """Nobody is there to be asked for one."""
    raise _EncryptedKey


def _load_authorities(context: ssl.SSLContext, settings: Names, ca: File) -> None:
    _must_hold(_CERTIFICATE, "certificate", settings.ca, ca)
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
    """Why peers will refuse a certificate, such as "certificate has expired"; found by a handshake with itself."""
    ends = {}
    for protocol, judges in {ssl.PROTOCOL_TLS_SERVER: not server, ssl.PROTOCOL_TLS_CLIENT: server}.items():
        ends[protocol] = context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED if judges else ssl.CERT_NONE
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


def _stamp(file: Path) -> tuple[int, int, int] | None:
    # Kubernetes replaces the file of a Secret by way of a link: another inode, perhaps of the same size and second.
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
