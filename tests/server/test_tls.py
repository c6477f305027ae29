"""What do real clients see of a server that speaks TLS?"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from server_process import PATIENCE, LiveServer, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
import hashlib, io, json, os, ssl, time

BIG = bytes(range(256)) * 40_000  # 10 MB

class Stuck(io.FileIO):
    def close(self):
        if not self.closed:
            time.sleep(600)

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/environ":
        shown = {name: environ[name] for name in environ if name.startswith(("SSL_", "HTTPS", "wsgi.url_scheme"))}
        body = [json.dumps(shown).encode()]
    elif path == "/echo":
        body = [hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()]
    elif path == "/big":
        body = [BIG]
    elif path == "/pieces":
        body = (BIG[at : at + 100_000] for at in range(0, len(BIG), 100_000))
    elif path == "/file":
        body = environ["wsgi.file_wrapper"](open(os.path.join(os.path.dirname(__file__), "big"), "rb"))
    elif path == "/stuck-behind":
        body = environ["wsgi.file_wrapper"](Stuck(os.path.join(os.path.dirname(__file__), "big")))
    elif path == "/torn":
        def torn():
            yield b"tea"
            raise LookupError("no more tea")
        body = torn()
    elif path == "/slow":
        print("slow", flush=True)
        time.sleep(float(query))
        body = [b"slow"]
    else:
        body = [b"%d" % os.getpid()]
    start_response("200 OK", [])
    return body

def unhurried(app):
    import prefork.worker
    prefork.worker.PARTING = 5

def context():
    contexts = {}
    for name in ("good", "expired", "self-signed"):
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(os.path.join(os.path.dirname(__file__), name + ".pem"))
    def choose(connection, name, _):
        connection.context = contexts.get((name or "").split(".")[0], contexts["good"])
    contexts["good"].sni_callback = choose
    return contexts["good"]

def fickle():
    if os.path.exists(os.path.join(os.path.dirname(__file__), "mark")):
        raise LookupError("no more tea")
    return context()
"""
BIG = bytes(range(256)) * 40_000
NAMES = ("localhost", "127.0.0.1", "good.example")


@pytest.fixture(autouse=True)
def _programs() -> None:
    for name in ("openssl", "curl", "stdbuf"):
        if shutil.which(name) is None:
            assert "CI" not in os.environ, f"{name} is not installed"
            pytest.skip(f"{name} is not installed")


class Place:
    """A folder with the application, an authority and what it has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.issue("good")
        past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        self.issue("expired", "expired.example", not_before=past, not_after=past)
        self.write("self-signed", trustme.CA().issue_cert("self-signed.example"))
        (folder / "tea.py").write_text(APP)
        (folder / "big").write_bytes(BIG)

    def issue(self, name: str, *names: str, **more: Any) -> trustme.LeafCert:
        issued = self.authority.issue_cert(*(names or NAMES), **more)
        self.write(name, issued)
        return issued

    def issue_unreadable(self, name: str, part: str) -> str:
        """Sign a certificate in which a ``part`` cannot be read; return it without its key."""
        mail = "zoë@tea.example".encode("latin-1")
        # RFC 5280 section 4.2.1.6: a sequence of one rfc822Name, which should be ASCII.
        names = bytes([0x30, len(mail) + 2, 0x81, len(mail)]) + mail if part == "alternative name" else b"\x30\0"
        subject = x509.NameAttribute(x509.NameOID.COMMON_NAME, "Zoe")
        if part == "subject":
            subject._type = SimpleNamespace(value=7)  # type: ignore[assignment]  # an ObjectDescriptor, which is no text
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([subject]))
            .issuer_name(x509.load_pem_x509_certificate(self.authority.cert_pem.bytes()).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, names), critical=False)
            .sign(load_pem_private_key(self.authority.private_key_pem.bytes(), None), hashes.SHA256())  # type: ignore[arg-type]  # an authority's signs
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        shown = certificate.public_bytes(Encoding.PEM)
        (self.folder / f"{name}.pem").write_bytes(secret + shown)
        return shown.decode()

    def write(self, name: str, issued: trustme.LeafCert) -> None:
        """Write a key and its certificate into one file, at once."""
        new = self.folder / f"{name}.new"
        new.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        new.rename(self.folder / f"{name}.pem")

    def trusting(self, **versions: ssl.TLSVersion) -> ssl.SSLContext:
        """Return a context for a client that trusts the authority."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        for name, version in versions.items():
            setattr(context, name, version)
        return context

    def serve(self, **options: Any) -> LiveServer:
        """Return a server of the application."""
        given = {"max_workers": 1, "max_reqs_per_child": 0, "app_dir": str(self.folder), **options}
        if "ssl_context" not in given:
            given.setdefault("cert", str(self.folder / "good.pem"))
        return LiveServer.pool("tea:app", **given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[LiveServer]:
    """Give one worker with one thread."""
    with place.serve(threads=1, graceful_timeout=5, ssl_context="tea:context") as server:
        yield server


@contextmanager
def talk(server: LiveServer, context: ssl.SSLContext, **more: Any) -> Iterator[ssl.SSLSocket]:
    """Connect and shake hands."""
    with (
        socket.create_connection(server.address, timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False, **more) as client,
    ):
        yield client


def get(client: ssl.SSLSocket, path: str = "/", more: str = "") -> tuple[bytes, bytes]:
    """Ask on a connection; return head and body of an answer that has a Content-Length."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
    return answer(client)


def answer(client: ssl.SSLSocket, buffered: bytearray | None = None) -> tuple[bytes, bytes]:
    data = bytearray() if buffered is None else buffered
    while b"\r\n\r\n" not in data:
        data += more_of(client)
    at = data.index(b"\r\n\r\n") + 4
    head = bytes(data[:at])
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(data) < at + length:
        data += more_of(client)
    body = bytes(data[at : at + length])
    del data[: at + length]
    return head, body


def more_of(client: ssl.SSLSocket) -> bytes:
    piece = client.recv(65536)
    assert piece, "the connection ended"
    return piece


def all_of(client: ssl.SSLSocket) -> bytes:
    """Return what comes until the end is announced."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def ask_until_told_to_close(client: ssl.SSLSocket) -> set[bytes]:
    """Ask again and again; return the bodies. The word comes with the answer before the connection ends."""
    head, bodies = b"", set()
    while b"\r\nConnection: close\r\n" not in head:
        head, body = get(client)
        bodies.add(body)
    return bodies


def run(*command: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=PATIENCE, check=False)


def curl(place: Place, server: LiveServer, name: str, path: str = "/", *more: str) -> subprocess.CompletedProcess[str]:
    """Ask for a host of this name, which is the server."""
    port = str(server.address[1])
    where = ("--connect-to", f"{name}:443:127.0.0.1:{port}", "--cacert", str(place.folder / "ca.pem"))
    return run("curl", "--silent", "--show-error", *where, *more, f"https://{name}{path}")


def s_client(server: LiveServer, *more: str, said: str = "GET / HTTP/1.0\r\n\r\n") -> str:
    """Return what ``openssl s_client`` prints."""
    done = run("openssl", "s_client", "-connect", f"127.0.0.1:{server.address[1]}", *more, said=said)
    return done.stdout + done.stderr


# Who is let in, and with what.


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_is_served(place: Place, server: LiveServer, version: str) -> None:
    asked = curl(place, server, "good.example", "/environ", f"--tlsv{version}", "--tls-max", version)
    told = json.loads(asked.stdout)
    assert told.pop("SSL_CIPHER")
    expected = {"HTTPS": "on", "SSL_PROTOCOL": f"TLSv{version}", "SSL_CLIENT_VERIFY": "NONE"}
    assert told == {**expected, "wsgi.url_scheme": "https"}


def test_httpx_is_served_on_a_kept_connection(place: Place, server: LiveServer) -> None:
    with httpx.Client(verify=place.trusting(), base_url=server.url) as client:
        assert [client.get("/").status_code for _ in range(3)] == [200] * 3


def test_openssl_is_served_and_learns_the_protocol(place: Place, server: LiveServer) -> None:
    said = s_client(
        server, "-alpn", "h2,http/1.1", "-ign_eof", said="GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert "HTTP/1.1 200 OK" in said
    assert "closed" in said


def test_the_protocol_is_agreed_on(place: Place) -> None:
    with place.serve() as server:
        assert "ALPN protocol: http/1.1" in s_client(server, "-alpn", "h2,http/1.1")
        for settled in ("-tls1_2", "-tls1_3"):
            assert "Compression: NONE" in s_client(server, settled, "-comp")
        # R asks for a renegotiation; TLS 1.3 has none.
        assert "no renegotiation" in s_client(server, "-tls1_2", said="R\n")
        assert "alert protocol version" in s_client(server, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
        refused = server.wait_for("tls.handshake_failed", reason="UNSUPPORTED_PROTOCOL")
        assert refused["client"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("expired.example", "certificate has expired"),
        ("self-signed.example", "unable to get local issuer certificate"),
        ("other.example", "no alternative certificate subject name matches"),
    ],
)
def test_a_wrong_certificate_is_the_clients_to_refuse(
    place: Place, server: LiveServer, name: str, complaint: str
) -> None:
    """The application's own context chooses by name, which is how SNI is done."""
    asked = curl(place, server, name)
    assert (asked.returncode, asked.stdout) == (60, "")
    assert complaint in asked.stderr


def test_plain_http_gets_an_answer_that_can_be_read(server: LiveServer) -> None:
    status, body = server.get()
    assert status == 400
    assert b"this port speaks TLS: ask with https://" in body
    server.wait_for("request.rejected", status=400)


@pytest.mark.parametrize("octets", [b"\x80\x2e\x01\x03\x01", b"\x16\x03\x01\x00\x05hello", b"\x16\x00\x00\x00\x00"])
def test_octets_that_are_no_handshake_end_the_connection(server: LiveServer, octets: bytes) -> None:
    with socket.create_connection(server.address, timeout=PATIENCE) as client:
        client.sendall(octets)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


def test_a_client_may_change_its_keys(server: LiveServer) -> None:
    """RFC 8446 section 4.6.3. K asks for it, and asks the server to do the same."""
    command = ("stdbuf", "-oL", "openssl", "s_client", "-tls1_3", "-msg", "-connect", f"127.0.0.1:{server.address[1]}")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for said, answered in (
            (b"", b"read R BLOCK"),
            (b"K\n", b">>> TLS 1.3, Handshake [length 0005], KeyUpdate"),
            (b"GET / HTTP/1.0\r\n\r\n", b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate"),
            (b"", b"200 OK"),
        ):
            client.stdin.write(said)
            client.stdin.flush()
            while answered not in (line := client.stdout.readline()):
                assert line, "the client ended"
        client.stdin.close()
        client.stdout.read()


ASGI = """
import json

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = b"tea"
        if scope["path"] == "/slow":
            print("slow", flush=True)
            while (await receive())["type"] != "http.disconnect":
                pass
        elif scope["path"] == "/environ":
            body = json.dumps(scope["extensions"]["tls"]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""


def test_a_client_that_breaks_the_protocol_has_left_and_its_application_is_not_to_blame(place: Place) -> None:
    (place.folder / "later.py").write_text(ASGI)
    server = LiveServer.pool(
        "later:app",
        max_workers=1,
        app_dir=str(place.folder),
        cert=str(place.folder / "good.pem"),
        access_log="-",
    )
    with server:
        with talk(server, place.trusting()) as client:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.wait_for_output("slow")
            # No longer what wrapped it: a record that nobody can decrypt.
            with socket.socket(fileno=os.dup(client.fileno())) as plain:
                plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                server.wait_for("request.finished", path="/slow", outcome="client_gone", status=499)
        with talk(server, place.trusting()) as client:
            assert get(client)[1] == b"tea"
        assert not server.all("request.failed")


# Certificates of clients.


@pytest.mark.parametrize("verify", ["required", "optional"])
def test_a_clients_certificate_is_asked_for_and_told(place: Place, verify: str) -> None:
    issued = place.authority.issue_cert("ann@tea.example", common_name="Ann, of Tea")
    place.write("client", issued)
    place.write("stranger", trustme.CA().issue_cert("eve@tea.example"))
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    place.issue("late", "late@tea.example", not_before=past, not_after=past)
    with place.serve(ca_certs=str(place.folder / "ca.pem"), ssl_verify=verify) as server:

        def ask(*more: str) -> subprocess.CompletedProcess[str]:
            return curl(place, server, "good.example", "/environ", *more)

        told = json.loads(ask("--cert", str(place.folder / "client.pem")).stdout)
        assert told["SSL_CLIENT_VERIFY"] == "SUCCESS"
        assert told["SSL_CLIENT_S_DN"].startswith("CN=Ann\\, of Tea,OU=")
        assert "O=trustme" in told["SSL_CLIENT_I_DN"]
        assert told["SSL_CLIENT_M_SERIAL"]
        assert told["SSL_CLIENT_CERT"] == issued.cert_chain_pems[0].bytes().decode()
        for name in ("stranger", "late"):
            assert ask("--cert", str(place.folder / f"{name}.pem")).returncode == 56
        assert server.wait_for("tls.handshake_failed", count=2)["reason"] == "CERTIFICATE_VERIFY_FAILED"
        without = ask()
        if verify == "required":
            assert "certificate required" in without.stderr
            server.wait_for("tls.handshake_failed", reason="PEER_DID_NOT_RETURN_A_CERTIFICATE")
        else:
            assert json.loads(without.stdout)["SSL_CLIENT_VERIFY"] == "NONE"


@pytest.fixture(params=["wsgi", "asgi"])
def verifying(request: pytest.FixtureRequest, place: Place) -> Iterator[LiveServer]:
    """Give a server that asks for certificates, and has one worker."""
    (place.folder / "later.py").write_text(ASGI)
    server = LiveServer.pool(
        {"wsgi": "tea:app", "asgi": "later:app"}[request.param],
        max_workers=1,
        max_reqs_per_child=0,
        app_dir=str(place.folder),
        cert=str(place.folder / "good.pem"),
        ca_certs=str(place.folder / "ca.pem"),
    )
    with server:
        yield server


def showing(place: Place, name: str) -> ssl.SSLContext:
    """Return a context for a client that shows a certificate."""
    context = place.trusting()
    context.load_cert_chain(place.folder / f"{name}.pem")
    return context


def told_of_tls(client: ssl.SSLSocket) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(get(client, "/environ")[1])
    return told


@pytest.mark.parametrize("part", ["alternative name", "subject"])
def test_a_certificate_whose_names_cannot_be_read_is_told_without_them_and_ends_nobody(
    place: Place, verifying: LiveServer, part: str
) -> None:
    place.issue("client")
    pem = place.issue_unreadable("odd", part)
    with talk(verifying, showing(place, "client")) as other:
        get(other)
        with talk(verifying, showing(place, "odd")) as client:
            told = told_of_tls(client)
        get(other)
    if "client_cert_chain" in told:
        assert (told["client_cert_chain"], told["client_cert_name"]) == ([pem], None)
    else:
        names = ("SSL_CLIENT_VERIFY", "SSL_CLIENT_CERT", "SSL_CLIENT_S_DN", "SSL_CLIENT_I_DN", "SSL_CLIENT_M_SERIAL")
        assert [told.get(name) for name in names] == ["SUCCESS", pem, None, None, None]
    assert not verifying.all("worker.exited")


def test_a_name_is_told_in_octets_as_an_environ_has_them_and_as_text_in_a_scope(
    place: Place, verifying: LiveServer
) -> None:
    place.write("client", place.authority.issue_cert("zoe@tea.example", common_name="Зоя Zoë"))
    with talk(verifying, showing(place, "client")) as client:
        told = told_of_tls(client)
    name = (
        told["client_cert_name"] if "client_cert_name" in told else told["SSL_CLIENT_S_DN"].encode("latin-1").decode()
    )
    assert name.startswith("CN=Зоя Zoë,OU=")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_by_another_worker(place: Place, version: ssl.TLSVersion) -> None:
    context = place.trusting(maximum_version=version)
    with place.serve(max_workers=3) as server:
        with talk(server, context) as client:
            first = get(client)[1]
            session = client.session
        other = first
        while other == first:
            with talk(server, context, session=session) as client:
                other = get(client)[1]
                assert client.session_reused


@pytest.mark.over_both
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_says_that_it_was_the_last_request_in_one_go_is_answered_and_closed(
    place: Place, version: ssl.TLSVersion
) -> None:
    come, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = place.trusting(maximum_version=version).wrap_bio(come, going, server_hostname="localhost")
    with (
        place.serve(keep_alive_timeout=600) as server,
        socket.create_connection(server.address, timeout=PATIENCE) as client,
    ):
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.sendall(going.read())
                come.write(client.recv(65536))
        session.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ssl.SSLWantReadError):
            session.unwrap()
        client.sendall(going.read())
        while data := client.recv(65536):
            come.write(data)
        assert session.read().startswith(b"HTTP/1.1 200 OK\r\n")


# Slow ones.


def test_a_handshake_that_dawdles_keeps_no_thread_and_is_cut(place: Place) -> None:
    with place.serve(threads=1, head_timeout=2.5) as server:
        hello = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            place.trusting().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
        octets = hello.read()
        began = time.monotonic()
        with (
            socket.create_connection(server.address, timeout=PATIENCE) as silent,
            socket.create_connection(server.address, timeout=PATIENCE) as stalled,
            socket.create_connection(server.address, timeout=PATIENCE) as slow,
            httpx.Client(verify=place.trusting(), base_url=server.url) as good,
        ):
            stalled.sendall(octets[:50])
            cut = {silent: False, stalled: False, slow: False}
            for at in range(len(octets)):
                if not cut[slow]:
                    with suppress(ConnectionError):
                        slow.sendall(octets[at : at + 1])
                asked = time.monotonic()
                assert good.get("/").status_code == 200
                assert time.monotonic() - asked < 2
                for client in select.select([client for client in cut if not cut[client]], [], [], 0.1)[0]:
                    with suppress(ConnectionError):  # of who sends until it is cut
                        assert not client.recv(1000), "nothing was to be said"
                    cut[client] = True
                if all(cut.values()):
                    break
            assert all(cut.values())
            assert time.monotonic() - began < 10


@pytest.mark.parametrize("path", ["/big", "/pieces", "/file"])
def test_a_slow_reader_keeps_no_thread_and_gets_it_all(place: Place, server: LiveServer, path: str) -> None:
    with talk(server, place.trusting()) as slow:
        slow.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with talk(server, place.trusting()) as other:
            assert get(other)[1]  # the only thread is free
        data = all_of(slow)
    assert data.partition(b"\r\n\r\n")[2] == BIG


def test_a_whole_answer_arrives_and_its_end_is_announced_although_the_application_is_stuck_behind_it(
    place: Place,
) -> None:
    with place.serve(request_timeout=0.3) as server, talk(server, place.trusting()) as client:
        client.sendall(b"GET /stuck-behind HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert server.wait_for("request.timeout")["status"] is None
        assert all_of(client).partition(b"\r\n\r\n")[2] == BIG


def test_a_large_body_comes_in_whole(place: Place, server: LiveServer) -> None:
    with httpx.Client(verify=place.trusting(), base_url=server.url, timeout=PATIENCE) as client:
        assert client.post("/echo", content=BIG).text == hashlib.sha256(BIG).hexdigest()
        pieces = (BIG[at : at + 77_777] for at in range(0, len(BIG), 77_777))
        assert client.post("/echo", content=pieces).text == hashlib.sha256(BIG).hexdigest()


def test_requests_in_one_record_and_in_many_are_answered_in_order(place: Place, server: LiveServer) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
    bodies = [b"%03d" % number for number in range(20)]
    octets = b"".join(request + body for body in bodies)
    for size in (len(octets), 7):
        with talk(server, place.trusting()) as client:
            for at in range(0, len(octets), size):
                client.sendall(octets[at : at + size])
            buffered = bytearray()
            answers = [answer(client, buffered)[1].decode() for _ in bodies]
        assert answers == [hashlib.sha256(body).hexdigest() for body in bodies]


# Ends.


def test_an_answer_that_ends_is_announced_and_one_that_breaks_is_not(place: Place, server: LiveServer) -> None:
    with talk(server, place.trusting()) as client:
        get(client, more="Connection: close\r\n")
        assert client.recv(1) == b""
    with talk(server, place.trusting()) as client:
        client.sendall(b"GET /torn HTTP/1.0\r\n\r\n")
        with pytest.raises(ssl.SSLEOFError):
            all_of(client)


def test_a_request_that_takes_too_long_is_answered_for(place: Place) -> None:
    with place.serve(request_timeout=0.2) as server, talk(server, place.trusting()) as client:
        assert get(client, "/slow?3")[0].startswith(b"HTTP/1.1 504 ")
        assert client.recv(1) == b""


@pytest.mark.parametrize("seconds", ["3", "3600"], ids=["they come back", "they are stuck"])
def test_who_is_tied_to_a_worker_that_has_lost_all_its_threads_does_not_keep_it_for_ever(
    place: Place, seconds: str
) -> None:
    trusting = place.trusting()
    with (
        place.serve(request_timeout=1, threads=1) as server,
        talk(server, trusting) as sender,
        talk(server, trusting) as first,
        talk(server, trusting) as second,
    ):
        (worker,) = server.worker_pids
        for client in (sender, first, second):
            get(client)
        sender.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nte")
        for client in (first, second):
            client.sendall(f"GET /slow?{seconds} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for client in (first, second):  # its thread, and the one in the place of that
            assert answer(client)[0].startswith(b"HTTP/1.1 504 ")
        if seconds == "3":
            sender.sendall(b"a")
            assert answer(sender)[1] == hashlib.sha256(b"tea").hexdigest().encode()
        else:
            assert sender.recv(1) == b""
        assert server.wait_for("worker.exited", child_pid=worker)["exit_code"] == 0
        with talk(server, trusting) as client:
            assert get(client)[1] != b"%d" % worker


def test_recycling_under_load_fails_no_request(place: Place) -> None:
    # Slow enough that who has said nothing yet goes to the worker that is free.
    slow: dict[str, Any] = {"path": "/slow?0.01", "keep_alive": False}
    with place.serve(max_workers=2, threads=1, max_reqs_per_child=20) as server:
        with (
            Tally(server, clients=6, tls=place.trusting()) as kept,
            Tally(server, clients=3, tls=place.trusting(), **slow) as new,
        ):
            server.wait_for("worker.exited", count=15, timeout=4 * PATIENCE)
        assert kept.lost == new.lost == []
        assert set(kept.statuses) == set(new.statuses) == {200}


def test_a_kept_client_of_a_retiring_worker_is_answered_and_told_to_close(place: Place) -> None:
    with place.serve() as server, talk(server, place.trusting()) as client:
        old = get(client)[1]
        server.send(signal.SIGUSR2)
        assert ask_until_told_to_close(client) == {old}
        assert client.recv(1) == b""
        with talk(server, place.trusting()) as new:
            assert get(new)[1] != old


def test_a_stop_answers_what_is_there(place: Place) -> None:
    with place.serve(graceful_timeout=10, warm_up="tea:unhurried") as server:
        with (
            talk(server, place.trusting()) as busy,
            talk(server, place.trusting()) as idle,
            talk(server, place.trusting()) as silent,
        ):
            get(idle)
            get(silent)
            busy.sendall(b"GET /slow?0.5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.wait_for_output("slow")
            server.send(signal.SIGTERM)
            ask_until_told_to_close(idle)
            head, body = answer(busy)
            assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"slow")
            assert busy.recv(1) == silent.recv(1) == b"", "who says nothing is let go with a word"
        assert server.wait() == 0


def test_a_stop_under_load_resets_nobody(place: Place) -> None:
    with place.serve(max_workers=2, graceful_timeout=10, warm_up="tea:unhurried") as server:
        with (
            Tally(server, clients=4, tls=place.trusting()) as kept,
            Tally(server, clients=2, tls=place.trusting(), keep_alive=False) as new,
        ):
            kept.wait_for(100)
            server.send(signal.SIGTERM)
            assert server.wait() == 0
        assert {why.partition(":")[0] for why in kept.lost + new.lost} <= {"ConnectionRefusedError"}


# New certificates.


def shown(server: LiveServer, context: ssl.SSLContext) -> str:
    with talk(server, context) as client:
        certificate = client.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def test_hup_shows_a_new_certificate_and_loses_nobody(place: Place) -> None:
    place.issue("mine")
    where = ("--cert", str(place.folder / "mine.pem"), "--max-workers", "1", "--app-dir", str(place.folder))
    with LiveServer.of("tea:app", *where) as server, Tally(server, tls=place.trusting(), clients=2) as tally:
        old = shown(server, place.trusting())
        (place.folder / "mine.pem").write_text("-----BEGIN CERTIFICATE-----")
        server.send(signal.SIGHUP, to=server.pid)
        failed = server.wait_for("pool.deploy_failed")
        assert "[PF321]" in failed["reason"]
        assert shown(server, place.trusting()) == old
        place.issue("mine")
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("pool.stopped", generation=1)
        assert shown(server, place.trusting()) != old
        tally.wait_for(20)
        tally.stop()
        assert tally.lost == []


def test_a_program_renews_its_certificate_with_its_workers(place: Place) -> None:
    place.issue("own")
    with place.serve(cert=str(place.folder / "own.pem")) as server:
        old = shown(server, place.trusting())
        (place.folder / "own.pem").unlink()
        server.send(signal.SIGHUP)
        told = server.wait_for("tls.not_renewed")
        assert (told["code"], told["level"]) == ("PF323", "error")
        assert "own.pem', which cannot be read: No such file or directory" in told["reason"]
        assert shown(server, place.trusting()) == old
        assert not server.all("pool.recycling")
        place.issue("own")
        server.send(signal.SIGHUP)
        server.wait_for("worker.exited")
        assert shown(server, place.trusting()) != old


def test_a_function_that_fails_at_hup_is_told_with_its_traceback(place: Place) -> None:
    with place.serve(ssl_context="tea:fickle") as server:
        (place.folder / "mark").touch()
        server.send(signal.SIGHUP)
        told = server.wait_for("tls.not_renewed")
        assert "no more tea" in told["reason"]
        assert "in fickle" in told["exception"]
        with talk(server, place.trusting()) as client:
            assert get(client)[1]


def test_a_certificate_that_cannot_be_used_ends_the_start_with_2_and_one_line(place: Place) -> None:
    (place.folder / "bad.pem").write_text("tea")
    with LiveServer.of("tea:app", "--cert", "bad.pem", cwd=place.folder, ready="") as server:
        assert server.wait() == 2
        line = (
            "prefork: error: cert is 'bad.pem', which holds no certificate: a PEM file has -----BEGIN CERTIFICATE-----"
        )
        assert server.output == [f"{line} [PF321]"]
        assert server.records == []


def test_the_configuration_is_checked_with_its_certificate(place: Place) -> None:
    where = {"cwd": place.folder, "ready": ""}
    with LiveServer.of("tea:app", "--check-config", "--cert", "nothing.pem", **where) as server:
        assert server.wait() == 2
    with LiveServer.of("tea:app", "--check-config", "--cert", "good.pem", **where) as server:
        assert server.wait() == 0
    flags = ("--check-config", "--bind", "bücher.example:8443", "--cert", "adhoc")
    with LiveServer.of("tea:app", *flags, **where) as server:
        assert server.wait() == 1
        assert [line.rpartition("[")[2] for line in server.output] == ["PF311]"]  # nowhere does that name resolve


def test_a_unix_socket_speaks_tls_as_well(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with place.serve(bind=f"unix:{path}"):
        where = ("--unix-socket", str(path), "--cacert", str(place.folder / "ca.pem"))
        told = json.loads(run("curl", "--silent", *where, "https://good.example/environ").stdout)
        assert told["wsgi.url_scheme"] == "https"


def test_who_is_one_too_many_is_cut_before_a_handshake_and_the_others_go_on(place: Place) -> None:
    trusting = place.trusting()
    with place.serve(limit_concurrency=1) as server, talk(server, trusting) as client:
        get(client)  # who has asked is let stay for longer
        for _ in range(2):
            with pytest.raises(OSError), talk(server, trusting):  # noqa: PT011 - closed or reset
                pass
            assert get(client)[0].startswith(b"HTTP/1.1 200")
        assert server.wait_for("worker.overloaded", reason="limit_concurrency")["turned_away"] >= 1
