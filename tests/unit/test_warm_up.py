"""What does the parent do with the application before it forks?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from prefork.errors import AppFailed
from prefork.warm_up import ask, warm_up

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
    warm_up(shop, ("/", "/a?b=c"), ".")
    assert shop.asked == ["GET /?", "read", "closed", "GET /a?b=c", "read", "closed"]


def test_one_path_may_stand_for_itself() -> None:
    shop = Shop()
    warm_up(shop, "/a", ".")
    assert shop.asked[0] == "GET /a?"


def test_what_is_asked_is_wsgi_to_the_letter() -> None:
    def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1")])
        return [b"x"]

    ask(validator(plain), "/a?b=c")


def test_a_function_is_given_the_application() -> None:
    given: list[object] = []
    shop = Shop()
    warm_up(shop, given.append, ".")
    assert given == [shop]
    assert shop.asked == []


def test_a_function_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "warming.py").write_text("def warm(app): app.asked.append('warmed')\n")
    shop = Shop()
    warm_up(shop, "warming:warm", str(tmp_path))
    assert shop.asked == ["warmed"]


def test_without_any_nothing_is_done() -> None:
    shop = Shop()
    warm_up(shop, None, ".")
    warm_up(shop, (), ".")
    assert shop.asked == []


def broken(*_: object) -> None:
    raise LookupError("no database")


@pytest.mark.parametrize("how", [broken, ("/",)], ids=["function", "paths"])
def test_what_it_raises_ends_the_start(how: Any) -> None:
    with pytest.raises(AppFailed) as caught:
        warm_up(broken, how, ".")
    assert (caught.value.code, caught.value.exit_code) == ("PF414", 1)
    assert str(caught.value).startswith("warm_up failed: LookupError: no database: see the traceback")
    assert isinstance(caught.value.__cause__, LookupError)
