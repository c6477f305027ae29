"""What does the parent do with the application before it forks?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from prefork.config import Config
from prefork.errors import AppFailed
from prefork.targets import Target
from prefork.warm_up import warm_up
from prefork.wsgi.rehearsal import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Shop:
    """An application that notes what it is asked, and when its answers end."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        assert environ["wsgi.multiprocess"] is True
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        start_response("200 OK", [("Content-Type", "text/plain")])(b"written")
        return Answer(self)


class Answer:
    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    def __iter__(self) -> Iterator[bytes]:
        yield b"a"
        self.shop.asked.append("read")

    def close(self) -> None:
        self.shop.asked.append("closed")


def test_paths_are_asked_for_and_their_answers_read_to_the_end_and_closed() -> None:
    shop = Shop()
    warm_up(shop, Config(warm_up=("/", "/a?b=c")))
    assert shop.asked == ["GET /?", "read", "closed", "GET /a?b=c", "read", "closed"]


def test_one_path_may_stand_for_itself() -> None:
    shop = Shop()
    warm_up(shop, Config(warm_up="/a"))
    assert shop.asked[0] == "GET /a?"


def test_what_is_asked_is_wsgi_to_the_letter() -> None:
    def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1")])
        return [b"x"]

    assert ask(validator(plain), Target("/a?b=c"), Config()) == (200, "x")


def test_a_function_is_given_the_application() -> None:
    given: list[object] = []
    shop = Shop()
    warm_up(shop, Config(warm_up=given.append))
    assert given == [shop]
    assert shop.asked == []


def test_a_function_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "warming.py").write_text("def warm(app): app.asked.append('warmed')\n")
    shop = Shop()
    warm_up(shop, Config(warm_up="warming:warm", app_dir=str(tmp_path)))
    assert shop.asked == ["warmed"]


def test_without_any_nothing_is_done() -> None:
    shop = Shop()
    warm_up(shop, Config())
    warm_up(shop, Config(warm_up=()))
    assert shop.asked == []


def broken(*_: object) -> None:
    raise LookupError("no database")


@pytest.mark.parametrize("how", [broken, ("/",)], ids=["function", "paths"])
def test_what_it_raises_ends_the_start(how: Any) -> None:
    with pytest.raises(AppFailed) as caught:
        warm_up(broken, Config(warm_up=how))
    assert (caught.value.code, caught.value.exit_code) == ("PF414", 1)
    assert str(caught.value).startswith("warm_up failed: LookupError: no database: see the traceback")
    assert isinstance(caught.value.__cause__, LookupError)


def answering(status: str) -> Callable[..., Any]:
    return lambda _environ, start_response: (start_response(status, []), [b"no ", b"database"])[1]


def test_an_answer_of_500_fails_the_warm_up() -> None:
    with pytest.raises(AppFailed, match=r"warm_up /a was answered with 503: .*no .*database") as caught:
        warm_up(answering("503 Service Unavailable"), Config(warm_up="/a"))
    assert caught.value.code == "PF414"


@pytest.mark.parametrize(("status", "told"), [("200 OK", 0), ("302 Found", 0), ("400 Bad Request", 1), ("404 No", 1)])
def test_an_answer_of_400_to_499_is_told(status: str, told: int) -> None:
    refused = warm_up(answering(status), Config(warm_up=("/", "http://shop.example/a")))
    expected = [(Target("/"), int(status[:3])), (Target("/a", "shop.example", "http"), int(status[:3]))]
    assert refused == expected * told


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("/", ("http", "localhost", "localhost", "80")),
        ("http://shop.example:81/", ("http", "shop.example:81", "shop.example", "81")),
        ("https://shop.example", ("https", "shop.example", "shop.example", "443")),
        ("http://[::1]:81/", ("http", "[::1]:81", "[::1]", "81")),
    ],
)
def test_a_url_says_for_which_host_it_is_asked(url: str, seen: tuple[str, ...]) -> None:
    environs: list[dict[str, Any]] = []

    def shop(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environs.append(environ)
        start_response("200 OK", [])
        return [b"x"]

    warm_up(shop, Config(warm_up=url))
    keys = ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT")
    assert [tuple(environ[key] for key in keys) for environ in environs] == [seen]


def test_early_hints_are_no_answer() -> None:
    def hasty(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
        start_response("500 Sick", [])
        return []

    with pytest.raises(AppFailed, match="answered with 500"):
        warm_up(hasty, Config(warm_up="/"))
