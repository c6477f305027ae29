"""Which certificate do we show, and whose do we ask for?

The context of OpenSSL is made in the parent, before the fork: so all workers have the same keys for session tickets, and
a client that comes back to another worker resumes its session there.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from prefork.addresses import parse_bind
from prefork.config import ADHOC
from prefork.errors import AppFailed, ConfigError, MissingExtra, PreforkError
from prefork.hooks import load_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import GeneralName

    from prefork.config import Config

ADHOC_DAYS = 30
# OpenSSL reads a few kinds of each.
_CERTIFICATE, _PRIVATE_KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"
_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def make_context(config: Config) -> ssl.SSLContext:
    """Return the context that the options describe, read anew each time.

    Raises ``ConfigError`` for files that do not fit, ``MissingExtra`` if adhoc needs a library, and ``AppFailed`` for
    what a function of the application's raises.
    """
    if config.ssl_context is not None:
        return _given(config)
    # Ciphers and groups are left to OpenSSL, which is kept up to date.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    if config.cert == ADHOC:
        _load_adhoc(context, config)
    else:
        _load_files(context, config)
    if config.ca_certs is not None:
        _load_authorities(context, Path(config.ca_certs))
        context.verify_mode = _VERIFY["required" if config.ssl_verify == "auto" else config.ssl_verify]
    return context


# A context that is made by others.


def _given(config: Config) -> ssl.SSLContext:
    given = config.ssl_context
    name = given if isinstance(given, str) else getattr(given, "__qualname__", "ssl_context")
    if isinstance(given, str):
        given = load_object(given, config.app_dir)
    if callable(given):
        given = _call(given, name)
    if not isinstance(given, ssl.SSLContext):
        what = "None" if given is None else f"of type {type(given).__name__}"
        raise ConfigError("PF320", f"{name} is {what}, no ssl.SSLContext", "name one, or a function that returns one")
    if given.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ConfigError("PF320", f"{name} is a context for clients", "make it with ssl.PROTOCOL_TLS_SERVER")
    return given


def _call(make: Callable[[], object], name: str) -> object:
    try:
        return make()
    except PreforkError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise AppFailed("PF320", f"{name}() failed ({why})", "see the traceback") from error


# A context from files.


def _load_files(context: ssl.SSLContext, config: Config) -> None:
    cert = Path(config.cert or "")
    key = cert if config.key is None else Path(config.key)
    if _CERTIFICATE not in _read(cert, "cert"):
        raise _unfit(f"cert is {str(cert)!r}, which holds no certificate", "a PEM file has -----BEGIN CERTIFICATE-----")
    if _PRIVATE_KEY not in _read(key, "key"):
        hint = "give the private key with key" if config.key is None else "a PEM file has -----BEGIN PRIVATE KEY-----"
        raise _unfit(f"{'cert' if config.key is None else 'key'} is {str(key)!r}, which holds no private key", hint)
    password = _Password(config.key_password_file, key)
    try:
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        reason = error.reason or error
        if error.reason == "KEY_VALUES_MISMATCH":
            what, hint = (
                f"the private key in {str(key)!r} is not that of {str(cert)!r}",
                "give two that belong together",
            )
        elif password.asked:
            what, hint = f"{str(key)!r} cannot be read ({reason})", "check the password in key_password_file"
        else:
            what, hint = f"{str(cert)!r} and {str(key)!r} cannot be read ({reason})", "check them with openssl"
        raise _unfit(what, hint) from None


class _Password:
    """What OpenSSL asks for the password of an encrypted key. It would ask on the terminal."""

    def __init__(self, file: str | None, key: Path) -> None:
        self._file, self._key = file, key
        self.asked = False

    def __call__(self) -> bytes:
        self.asked = True
        if self._file is None:
            what = f"the private key in {str(self._key)!r} is encrypted"
            raise _unfit(what, "give its password with key_password_file")
        return _read(Path(self._file), "key_password_file").split(b"\n", 1)[0].rstrip(b"\r")


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    if path.is_dir():
        context.load_verify_locations(capath=path)
        return
    if _CERTIFICATE not in _read(path, "ca_certs"):
        hint = "a PEM file has -----BEGIN CERTIFICATE-----"
        raise _unfit(f"ca_certs is {str(path)!r}, which holds no certificate", hint)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise _unfit(
            f"ca_certs {str(path)!r} cannot be read ({error.reason or error})", "check it with openssl"
        ) from None


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "check the path, and who may read it" if isinstance(error, PermissionError) else "check the path"
        raise _unfit(f"{option} is {str(path)!r}, which cannot be read: {error.strerror}", hint) from None


def _unfit(what: str, hint: str) -> ConfigError:
    return ConfigError("PF321", what, hint)


# A certificate that is made up.


def _load_adhoc(context: ssl.SSLContext, config: Config) -> None:
    """Sign a certificate for this machine, and the addresses of ``bind``, by itself: no client knows who that is."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        hint = "pip install 'prefork[tls]', or give a certificate and its key"
        raise MissingExtra("PF322", "cert is adhoc, but the library cryptography is not installed", hint) from None
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", *(parse_bind(text).host for text in config.bind)])
    general_names = [general for name in names if name and (general := _general_name(name))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=ADHOC_DAYS))
        .add_extension(x509.SubjectAlternativeName(general_names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # OpenSSL reads files alone. The folder is open to nobody else, and gone again at once.
    with TemporaryDirectory(prefix="prefork-") as folder:
        both = Path(folder, "adhoc.pem")
        both.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(both)


def _general_name(text: str) -> GeneralName | None:
    """Return how a certificate has an address or a name, ``None`` for a name that none can have."""
    from cryptography import x509

    with suppress(ValueError):
        return x509.IPAddress(ip_address(text))
    with suppress(UnicodeError):
        return x509.DNSName(text.encode("idna").decode())
    return None
