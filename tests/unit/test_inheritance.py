"""Which sockets does the environment pass on to us?"""

from __future__ import annotations

import pytest

from prefork.errors import ConfigError
from prefork.inheritance import Inheritance, Passed, forget_inheritance, inheritance_of

PID = 4711


def of(**environ: str) -> Inheritance | None:
    return inheritance_of(environ, PID)


@pytest.mark.parametrize(
    ("text", "sockets"),
    [
        pytest.param("8080=4", [(4, "8080")], id="a port alone"),
        pytest.param("127.0.0.1:8080=4", [(4, "127.0.0.1:8080")], id="host and port"),
        pytest.param("[::1]:8080=5", [(5, "[::1]:8080")], id="IPv6"),
        pytest.param("/run/shop.sock=7", [(7, "/run/shop.sock")], id="a path"),
        pytest.param("/run/a=b.sock=7", [(7, "/run/a=b.sock")], id="a path with a sign of equality"),
        pytest.param(
            "127.0.0.1:18513=4;[::1]:18514=5;127.0.0.1:18515=9;/run/w.sock=7",
            [(4, "127.0.0.1:18513"), (5, "[::1]:18514"), (9, "127.0.0.1:18515"), (7, "/run/w.sock")],
            id="Perl: as they come, not in a row",
        ),
        pytest.param(
            "0.0.0.0:8080=3;8081=4;/tmp/shop.sock=5",
            [(3, "0.0.0.0:8080"), (4, "8081"), (5, "/tmp/shop.sock")],
            id="Go: from 3 on, in a row",
        ),
        pytest.param("u8080=4", [(4, "u8080")], id="a letter of UDP, as nobody writes it: the socket tells"),
    ],
)
def test_server_starter_names_each_socket_by_its_descriptor(text: str, sockets: list[tuple[int, str]]) -> None:
    inheritance = of(SERVER_STARTER_PORT=text, SERVER_STARTER_GENERATION="3")
    assert inheritance is not None
    assert inheritance.sockets == tuple(Passed(fd, name) for fd, name in sockets)
    assert (inheritance.variable, inheritance.starter_generation) == ("SERVER_STARTER_PORT", 3)


@pytest.mark.parametrize("generation", [{}, {"SERVER_STARTER_GENERATION": ""}, {"SERVER_STARTER_GENERATION": "new"}])
def test_a_generation_that_is_no_number_is_none(generation: dict[str, str]) -> None:
    inheritance = of(SERVER_STARTER_PORT="8080=4", **generation)
    assert inheritance is not None
    assert inheritance.starter_generation is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "is empty: start_server was given neither --port nor --path", id="empty"),
        pytest.param("8080", "has '8080'", id="no descriptor"),
        pytest.param("8080=", "has '8080='", id="an empty one"),
        pytest.param("8080=four", "has '8080=four'", id="no number"),
        pytest.param("8080=-1", "has '8080=-1'", id="below zero"),
        pytest.param("8080=99999999999", "has '8080=99999999999'", id="no C int"),
        pytest.param("=4", "has '=4'", id="no key"),
        pytest.param("8080=4;", "has ''", id="a separator too many"),
    ],
)
def test_what_server_starter_never_writes_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"\[PF315\]") as refused:
        of(SERVER_STARTER_PORT=text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("names", "sockets"),
    [
        pytest.param({}, [(3, ""), (4, "")], id="no names"),
        pytest.param({"LISTEN_FDNAMES": "web:admin"}, [(3, "web"), (4, "admin")], id="names"),
        pytest.param({"LISTEN_FDNAMES": "web"}, [(3, "web"), (4, "")], id="fewer names"),
        pytest.param({"LISTEN_FDNAMES": "web:admin:more"}, [(3, "web"), (4, "admin")], id="more names"),
    ],
)
def test_systemd_passes_descriptors_from_the_third_on(names: dict[str, str], sockets: list[tuple[int, str]]) -> None:
    inheritance = of(LISTEN_FDS="2", LISTEN_PID=str(PID), **names)
    assert inheritance == Inheritance("LISTEN_FDS", tuple(Passed(fd, name) for fd, name in sockets))


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"LISTEN_FDS": "1"}, id="for nobody"),
        pytest.param({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, id="for another process"),
        pytest.param({"LISTEN_FDS": "many", "LISTEN_PID": "1"}, id="for another process, and wrong"),
        pytest.param({"LISTEN_FDS": "0", "LISTEN_PID": str(PID)}, id="none"),
        pytest.param({"LISTEN_PID": str(PID)}, id="no number"),
        pytest.param({"SERVER_STARTER_GENERATION": "1"}, id="a generation alone"),
    ],
)
def test_nothing_is_passed_on(environ: dict[str, str]) -> None:
    assert of(**environ) is None


@pytest.mark.parametrize("text", ["", "two", "-1", "999999"])
def test_a_number_that_systemd_never_writes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"LISTEN_FDS is .*\[PF315\]"):
        of(LISTEN_FDS=text, LISTEN_PID=str(PID))


def test_two_who_pass_sockets_on_are_one_too_many() -> None:
    both = {"SERVER_STARTER_PORT": "8080=4", "LISTEN_FDS": "1"}
    with pytest.raises(ConfigError, match=r"\[PF316\]"):
        of(**both, LISTEN_PID=str(PID))
    inheritance = of(**both, LISTEN_PID="1")  # systemd's were for start_server
    assert inheritance is not None
    assert inheritance.variable == "SERVER_STARTER_PORT"


def test_what_was_meant_for_us_is_taken_out_and_nothing_else() -> None:
    environ = dict.fromkeys(
        ["SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "HOME"], "x"
    )
    forget_inheritance(environ)
    forget_inheritance(environ)
    assert environ == {"HOME": "x"}
