"""What do the options make of certificates, and what is said of those that cannot be used?"""

from __future__ import annotations

import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from prefork.certificates import make_context
from prefork.config import Config
from prefork.errors import AppFailed, ConfigError, MissingExtra

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = b"correct horse"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with certificates and keys, good and bad."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    (folder / "cert.pem").write_bytes(chain)
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "both.pem").write_bytes(issued.private_key_pem.bytes() + chain)
    authority.issue_cert("localhost").private_key_pem.write_to_path(folder / "other.pem")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(PASSWORD)
    locked = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (folder / "locked.pem").write_bytes(locked)
    (folder / "password").write_bytes(PASSWORD + b"\nsecond line\n")
    (folder / "wrong").write_bytes(b"wrong\n")
    (folder / "garbled.pem").write_bytes(chain[:100] + b"\n" + chain[200:])
    (folder / "text").write_text("tea")
    return folder


def context_of(folder: Path, **options: str) -> ssl.SSLContext:
    files = {"cert", "key", "key_password_file", "ca_certs"}
    given: dict[str, Any] = {name: str(folder / value) if name in files else value for name, value in options.items()}
    return make_context(Config.of(**given))


@pytest.mark.parametrize(
    "options",
    [
        {"cert": "cert.pem", "key": "key.pem"},
        {"cert": "both.pem"},
        {"cert": "cert.pem", "key": "locked.pem", "key_password_file": "password"},
    ],
)
def test_a_certificate_and_its_key_make_a_context_that_is_strict(folder: Path, options: dict[str, str]) -> None:
    context = context_of(folder, **options)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("verify", "mode"),
    [
        ("auto", ssl.CERT_REQUIRED),
        ("required", ssl.CERT_REQUIRED),
        ("optional", ssl.CERT_OPTIONAL),
        ("none", ssl.CERT_NONE),
    ],
)
def test_clients_are_asked_as_the_options_say(folder: Path, verify: str, mode: ssl.VerifyMode) -> None:
    context = context_of(folder, cert="both.pem", ca_certs="ca.pem", ssl_verify=verify)
    assert context.verify_mode is mode
    assert len(context.get_ca_certs()) == 1


def test_authorities_may_lie_in_a_directory(folder: Path) -> None:
    assert context_of(folder, cert="both.pem", ca_certs=".").verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cert": "nothing.pem"}, "cert is '{}/nothing.pem', which cannot be read: No such file or directory"),
        ({"cert": "text"}, "cert is '{}/text', which holds no certificate"),
        ({"cert": "cert.pem"}, "cert is '{}/cert.pem', which holds no private key: give the private key with key"),
        ({"cert": "cert.pem", "key": "nothing.pem"}, "key is '{}/nothing.pem', which cannot be read"),
        ({"cert": "cert.pem", "key": "text"}, "key is '{}/text', which holds no private key"),
        ({"cert": "cert.pem", "key": "other.pem"}, "the private key in '{}/other.pem' is not that of '{}/cert.pem'"),
        ({"cert": "garbled.pem", "key": "key.pem"}, "'{}/garbled.pem' and '{}/key.pem' cannot be read"),
        (
            {"cert": "garbled.pem", "key": "locked.pem", "key_password_file": "password"},
            "'{}/garbled.pem' and '{}/locked.pem' cannot be read",
        ),
        ({"cert": "cert.pem", "key": "locked.pem"}, "the private key in '{}/locked.pem' is encrypted"),
        (
            {"cert": "cert.pem", "key": "locked.pem", "key_password_file": "wrong"},
            "'{}/locked.pem' cannot be read",
        ),
        (
            {"cert": "cert.pem", "key": "locked.pem", "key_password_file": "nothing"},
            "key_password_file is '{}/nothing', which cannot be read",
        ),
        ({"cert": "both.pem", "ca_certs": "nothing"}, "ca_certs is '{}/nothing', which cannot be read"),
        ({"cert": "both.pem", "ca_certs": "text"}, "ca_certs is '{}/text', which holds no certificate"),
        ({"cert": "both.pem", "ca_certs": "garbled.pem"}, "ca_certs '{}/garbled.pem' cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(folder: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        context_of(folder, **options)
    assert caught.value.code == "PF321"
    assert str(caught.value).startswith(said.replace("{}", str(folder)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "a"}, "key is given without cert"),
        ({"ca_certs": "a"}, "ca_certs is given without cert"),
        ({"cert": "a", "ssl_verify": "required"}, "ssl_verify is required without ca_certs"),
        ({"cert": "adhoc", "key": "a"}, "key is given beside cert adhoc"),
        ({"cert": "a", "ssl_context": "a:b"}, "ssl_context is given beside cert"),
        ({"ca_certs": "a", "ssl_context": "a:b"}, "ssl_context is given beside ca_certs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Config.of(**options)
    assert caught.value.code == "PF103"


@pytest.mark.parametrize(
    ("bind", "names"),
    [
        pytest.param("tea.example:8000,0.0.0.0:1", {"tea.example", "0.0.0.0"}, id="a name and an address"),
        pytest.param("bücher.example:8000", {"xn--bcher-kva.example"}, id="a name beyond ASCII"),
        pytest.param("ü..example:8000", set(), id="no name that a certificate can have"),
    ],
)
def test_a_certificate_for_development_is_made_up_for_this_machine(bind: str, names: set[str]) -> None:
    context = make_context(Config.of(cert="adhoc", bind=bind))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = trusting.wrap_bio(theirs, ours), context.wrap_bio(ours, theirs, server_side=True)
    for end in (client, server):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    client.do_handshake()
    shown = x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
    told = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in told} == {"localhost", "127.0.0.1", "::1", *names}


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtra, match=r"pip install 'prefork\[tls\]'") as caught:
        make_context(Config.of(cert="adhoc"))
    assert caught.value.code == "PF322"


def server_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@pytest.mark.parametrize("given", [server_context(), server_context, "certs:context", "certs:make"])
def test_a_context_may_be_given_or_made_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "certs.py").write_text(
        "import ssl\ncontext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\ndef make(): return context\n"
    )
    assert isinstance(make_context(Config.of(ssl_context=given, app_dir=str(tmp_path))), ssl.SSLContext)
    sys.modules.pop("certs", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: None, "is None, no ssl.SSLContext"),
        (lambda: "tea", "is of type str, no ssl.SSLContext"),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "is a context for clients"),
    ],
)
def test_what_is_no_context_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make_context(Config.of(ssl_context=given))
    assert caught.value.code == "PF320"


def test_what_makes_a_context_may_raise() -> None:
    def broken() -> None:
        raise LookupError("no tea")

    with pytest.raises(AppFailed, match="LookupError: no tea") as caught:
        make_context(Config.of(ssl_context=broken))
    assert caught.value.code == "PF320"


@pytest.mark.parametrize("given", ["module", 5, ("cert", "key")])
def test_what_cannot_be_a_context_is_refused_at_once(given: Any) -> None:
    with pytest.raises(ConfigError, match="ssl_context") as caught:
        Config.of(ssl_context=given)
    assert caught.value.code == "PF102"
