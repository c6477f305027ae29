"""Which sockets are opened, whose are they, and what is said of an address that cannot be had?"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork import listeners as module
from prefork.addresses import Address
from prefork.config import Config
from prefork.errors import PreforkError
from prefork.listeners import Listener, Listeners, open_listeners, reachable

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "127.0.0.1:0"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is put there when the test ends."""
    with ExitStack() as stack:
        yield stack


def opened(*bind: str, **options: object) -> Listeners:
    return open_listeners(Config.of(bind=bind, **options))


def refusal(*bind: str) -> PreforkError:
    """Return what is said of an address, and hold that nothing stays open."""
    before = sorted(Path("/dev/fd").iterdir())
    with pytest.raises(PreforkError) as caught:
        opened(*bind)
    assert sorted(Path("/dev/fd").iterdir()) == before
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# What is opened.


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        (HERE, r"http://127\.0\.0\.1:\d+"),
        ("localhost:0", r"http://127\.0\.0\.1:\d+"),
        (":0", r"http://0\.0\.0\.0:\d+"),
        pytest.param("[::1]:0", r"http://\[::1\]:\d+", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
def test_an_address_of_tcp_is_listened_on_under_its_real_port(bind: str, url: str) -> None:
    with opened(bind) as listeners:
        (listener,) = listeners
        assert re.fullmatch(url, listener.url)
        assert listener.address.port == listener.socket.getsockname()[1] > 0
        assert (listener.tcp, listener.inherited, listener.file) == (True, False, None)
        assert listener.server_port == str(listener.address.port)
        assert listener.server_name in listener.url
        assert not listener.socket.getblocking()
        assert listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with socket.create_connection((listener.address.host if bind != ":0" else "127.0.0.1", listener.address.port)):
            pass


def test_all_addresses_are_opened_in_their_order(tmp_path: Path, stack: ExitStack) -> None:
    given = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    listeners = stack.enter_context(opened(f"unix:{tmp_path / 's'}", HERE, f"fd://{os.dup(given.fileno())}"))
    assert [listener.url.partition(":")[0] for listener in listeners] == ["unix", "http", "http"]
    assert [listener.inherited for listener in listeners] == [False, False, True]


def test_a_unix_socket_has_the_mode_that_it_is_given_and_is_unlinked_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for bind, options, mode in (
        (f"unix:{path}", {}, 0o666),
        (f"unix:{path}", {"umask": "027"}, 0o640),
        (f"unix:{path}?mode=600", {"umask": "027"}, 0o600),
    ):
        with opened(bind, **options) as listeners:
            (listener,) = listeners
            made = path.lstat()
            assert stat.S_ISSOCK(made.st_mode)
            assert stat.S_IMODE(made.st_mode) == mode
            assert (listener.server_name, listener.server_port) == ("localhost", "80")
            assert listener.url == f"unix:{path}"
        assert not path.exists()
        listeners.close()  # again: nothing


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with opened(f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_file_that_somebody_else_has_bound_meanwhile_is_his(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "s"
    with opened(f"unix:{path}"):
        path.unlink()
        stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
    assert path.exists()


def test_only_who_owns_the_file_unlinks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, released, adopted = (opened(f"unix:{tmp_path / name}") for name in "abc")
    released.release()
    assert (tmp_path / "b").exists()
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a child
    copied.close()
    assert (tmp_path / "a").exists()
    adopted.adopt()
    adopted.close()
    assert not (tmp_path / "c").exists()


def test_a_descriptor_is_listened_on_as_it_is(stack: ExitStack) -> None:
    given = stack.enter_context(socket.socket())
    given.bind(("127.0.0.1", 0))  # bound, and not listening yet: systemd's way is another
    listeners = stack.enter_context(opened(f"fd://{os.dup(given.fileno())}"))
    (listener,) = listeners
    assert listener.inherited
    assert not listener.socket.get_inheritable()
    assert listener.url == f"http://127.0.0.1:{given.getsockname()[1]}"
    stack.enter_context(socket.create_connection(given.getsockname()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody is kept out")
def test_the_socket_of_a_pool_that_died_while_it_kept_newcomers_out_lets_them_in_again(stack: ExitStack) -> None:
    before = stack.enter_context(opened(HERE))
    before.refuse_newcomers()
    (listener,) = before
    descriptor = os.dup(listener.socket.fileno())
    stack.enter_context(open_listeners(Config.of(bind=HERE), inherited={HERE: [descriptor]}))
    with socket.create_connection(listener.socket.getsockname(), timeout=5):
        pass


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="abstract addresses are Linux's")
def test_an_inherited_unix_socket_is_shown_with_its_name_and_not_unlinked(tmp_path: Path, stack: ExitStack) -> None:
    name = f"prefork-{os.getpid()}"
    for address, url in ((f"\0{name}", f"unix:@{name}"), (str(tmp_path / "s"), f"unix:{tmp_path / 's'}")):
        given = stack.enter_context(socket.socket(socket.AF_UNIX))
        given.bind(address)
        with opened(f"fd://{os.dup(given.fileno())}") as listeners:
            assert [listener.url for listener in listeners] == [url]
    assert (tmp_path / "s").exists()


def test_a_socket_without_a_name_has_its_number(stack: ExitStack) -> None:
    one = stack.enter_context(socket.socket(socket.AF_UNIX))
    assert module._address_of(one) == Address(fd=one.fileno())


# What cannot be.


def test_an_address_that_is_named_twice_is_told(tmp_path: Path) -> None:
    for bind in ("127.0.0.1:8765", f"unix:{tmp_path / 's'}", "fd://7"):
        told = refusal(bind, HERE, bind)
        assert (told.code, told.exit_code) == ("PF314", 2)
        assert bind in str(told)
    opened(HERE, HERE).close()  # two free ports are two addresses


def test_a_port_in_use_is_told_with_how_to_find_who(tmp_path: Path) -> None:
    with opened(HERE) as listeners:
        (listener,) = listeners
        told = refusal(str(listener.address))
    assert (told.code, told.exit_code) == ("PF303", 1)
    assert str(told).startswith(f"cannot listen on {listener.address}: it is in use")
    assert f"{listener.address.port}" in told.hint
    with opened(f"unix:{tmp_path / 's'}"):
        told = refusal(f"unix:{tmp_path / 's'}")
    assert told.code == "PF303"
    assert f"ss -lxp src {tmp_path / 's'}" in told.hint


def test_what_was_opened_before_the_one_that_fails_is_closed(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "s"
    given = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    told = refusal(f"unix:{path}", f"unix:{tmp_path}")
    assert told.code == "PF306"
    assert not path.exists()
    assert given.fileno() >= 0


def test_an_address_that_is_not_ours_is_told() -> None:
    told = refusal("192.0.2.1:8000")
    assert (told.code, told.exit_code) == ("PF305", 1)
    assert "this machine has no address 192.0.2.1" in str(told)


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a..b"])
def test_a_name_that_does_not_resolve_is_told(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str, *_: object, **__: object) -> None:
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    told = refusal(f"{host}:8000")
    assert (told.code, told.exit_code) == ("PF311", 1)
    assert f"{host!r} does not resolve" in str(told)


def test_a_path_that_cannot_hold_a_socket_is_told(tmp_path: Path) -> None:
    told = refusal(f"unix:{tmp_path / 'nowhere' / 's'}")
    assert told.code == "PF312"
    assert f"there is no directory {tmp_path / 'nowhere'}: make it" in str(told)
    (tmp_path / "file").touch()
    assert refusal(f"unix:{tmp_path / 'file' / 's'}").code == "PF312"
    told = refusal(f"unix:{tmp_path / ('s' * 120)}")
    assert told.code == "PF312"
    assert f"the path has {len(str(tmp_path)) + 121} bytes" in str(told)


def test_a_path_that_is_taken_is_told_and_left_alone(tmp_path: Path, stack: ExitStack) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    assert refusal(f"unix:{file}").code == "PF306"
    assert file.read_text() == "precious"
    stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(str(tmp_path / "log"))
    told = refusal(f"unix:{tmp_path / 'log'}")
    assert told.code == "PF306"
    assert "a datagram socket is there" in str(told)


def test_a_descriptor_that_cannot_be_served_is_told_and_left_open(stack: ExitStack) -> None:
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    one, _other = (stack.enter_context(end) for end in socket.socketpair())
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    connection = stack.enter_context(socket.create_connection(server.getsockname()))
    for descriptor, words in (
        (reading, "is no socket"),
        (99_999, "is not open"),
        (99_999_999_999, "is not open"),
        (datagrams.fileno(), "of another kind (AF_INET, SOCK_DGRAM)"),
        (one.fileno(), "cannot be listened on"),
        (connection.fileno(), "it may be a connection"),
    ):
        told = refusal(f"fd://{descriptor}")
        assert (told.code, told.exit_code) == ("PF307", 1)
        assert str(told).startswith(f"descriptor {descriptor} ")
        assert words in str(told)
    os.fstat(datagrams.fileno())


@pytest.mark.parametrize(
    ("bind", "number", "code", "words"),
    [
        ("127.0.0.1:81", errno.EACCES, "PF304", "ports below 1024 are for root"),
        ("127.0.0.1:8081", errno.EACCES, "PF304", "sandbox"),
        ("unix:s", errno.EACCES, "PF304", "this user may not write to"),
        ("127.0.0.1:8081", errno.EMFILE, "PF313", "ulimit -n"),
        ("127.0.0.1:8081", errno.ENOBUFS, "PF308", os.strerror(errno.ENOBUFS)),
        ("[::1]:8081", errno.EAFNOSUPPORT, "PF305", "this machine has no address ::1"),
    ],
)
def test_what_the_system_has_against_it_is_told(
    bind: str, number: int, code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Listener:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "_open_tcp", refuse)
    monkeypatch.setattr(module, "_open_unix", refuse)
    monkeypatch.setattr(module, "_first_free_port", lambda: 1024)
    told = refusal(bind)
    assert (told.code, told.exit_code) == (code, 1)
    assert words in str(told)
    assert str(told).startswith(f"cannot listen on {bind}: ")


# Where it is reached.


def test_what_stands_for_all_interfaces_is_shown_as_addresses_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_outside", lambda family: ["10.1.2.3" if family == socket.AF_INET else "fd00::7"])
    assert reachable("http://0.0.0.0:80") == ("http://127.0.0.1:80", "http://10.1.2.3:80")
    assert reachable("http://[::]:80") == ("http://[::1]:80", "http://[fd00::7]:80")
    assert reachable("http://127.0.0.1:80") == ("http://127.0.0.1:80",)
    assert reachable("unix:/run/s") == ("unix:/run/s",)


def test_without_a_network_there_is_the_loopback_address_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(socket, "socket", unreachable)
    assert reachable("http://0.0.0.0:80") == ("http://127.0.0.1:80",)
