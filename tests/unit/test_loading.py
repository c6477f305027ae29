"""Which texts name an application, and what is said of one that names none?"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefork.errors import AppFailed, AppNotFound
from prefork.loading import as_single, kind_of, load_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODULES = {
    "kiosk": """
class Shop:
    def __init__(self, name="shop", *, open=True): self.name, self.open = name, open
    def wsgi(self, environ, start_response): return [self.name.encode()]
    __call__ = wsgi

class API:
    def __init__(self): pass
    def __call__(self, environ, start_response): return []

class Evented:
    async def __call__(self, scope, receive, send): pass

class Lazy:
    @property
    def app(self): raise LookupError("no database")

shop, lazy, number, nothing = Shop(), Lazy(), 1, None
async def asgi(scope, receive, send): pass
def one(environ): pass
def create_app(name="made", *, open=True): return Shop(name, open=open)
def needing(name): return Shop(name)
async def create_later(): return Shop()
def create_nothing(): return None
def create_broken(): raise LookupError("no database")
""",
    "plain": "def app(environ, start_response): return [b'plain']\n",
    "second": "def application(environ, start_response): return [b'second']\n",
    "factory": "def create_app(): pass\n",
    "bare": "",
    "raising": "raise LookupError('no database')\n",
    "leaving": "import sys\nsys.exit('enough')\n",
    "lacking": "import there_is_no_such_module\n",
    "package/__init__": "",
    "package/wsgi": "def application(environ, start_response): return [b'packed']\n",
    "package/app": "def app(environ, start_response): return [b'inner']\n",
    "evented/asgi": "async def application(scope, receive, send): pass\n",
    "asking/__init__": "import asking.nowhere\n",
    "looking": "import gc\nseen = gc.get_threshold()\ndef app(environ, start_response): return []\n",
    "deciding": "import gc\ngc.set_threshold(7, 8, 9)\ndef app(environ, start_response): return []\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory with the modules above, of which nothing is left afterwards."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("plain:app", b"plain"),
        ("plain", b"plain"),
        ("second", b"second"),
        (" plain:app ", b"plain"),
        ("package.wsgi:application", b"packed"),
        ("package.wsgi", b"packed"),
        ("kiosk:shop", b"shop"),
        ("kiosk:shop.wsgi", b"shop"),
        ("kiosk:create_app()", b"made"),
        ("kiosk:create_app('tea')", b"tea"),
        ("kiosk:create_app(name='tea', open=False)", b"tea"),
        ("kiosk:Shop('class')", b"class"),
        ("kiosk:Shop('nested').wsgi", None),
    ],
)
def test_an_application_is_found(spec: str, answer: bytes | None, folder: Path) -> None:
    if answer is None:  # a call stands last: nothing is taken from what it returns
        with pytest.raises(AppNotFound, match="PF201"):
            load_app(spec, str(folder))
    else:
        assert load_app(spec, str(folder))({}, None) == [answer]


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("", "PF201", "module:attribute"),
        (":app", "PF201", "module:attribute"),
        ("my-shop:app", "PF201", "module:attribute"),
        ("src/plain.py", "PF201", "src.plain:app"),
        ("src/plain.py:shop", "PF201", "src.plain:shop"),
        ("plain:", "PF201", "give an attribute"),
        ("plain:app(", "PF201", "give an attribute"),
        ("kiosk:create_app(number)", "PF201", "literals"),
        ("kiosk:create_app(**{})", "PF201", "literals"),
        ("plane:app", "PF202", "did you mean 'plain'?"),
        ("package.wsgy:application", "PF202", "did you mean 'package.wsgi'?"),
        ("plain.py", "PF202", "give a module, not a file: plain"),
        ("plain.sub:app", "PF202", "is a module and not a package"),
        ("package.wsgi.application", "PF202", "did you mean package.wsgi:application?"),
        ("plain.app", "PF202", "did you mean plain:app?"),
        ("unheard_of:app", "PF202", "--app-dir"),
        ("plain:ap", "PF203", "did you mean 'app'?"),
        ("kiosk:shop.wsgy", "PF203", "did you mean 'wsgi'?"),
        ("kiosk:zzzzzz", "PF203", "check the spelling"),
        ("bare", "PF203", "give bare:NAME"),
        ("package", "PF203", "did you mean package.wsgi?"),
        ("evented", "PF203", "did you mean evented.asgi?"),
        ("factory", "PF203", "did you mean factory:create_app()?"),
        ("kiosk:number", "PF204", "of type int"),
        ("kiosk:nothing", "PF204", "None"),
        ("kiosk:number()", "PF204", "leave the parentheses away"),
        ("kiosk:create_nothing()", "PF204", "does the factory return the application?"),
        ("kiosk:create_later()", "PF204", "make it a plain function"),
        ("package:app", "PF203", "'package'"),
        ("kiosk:needing()", "PF210", "missing a required argument: 'name'"),
        ("kiosk:create_app(colour='red')", "PF210", "unexpected keyword argument 'colour'"),
        ("kiosk:create_app", "PF211", "did you mean kiosk:create_app()?"),
        ("kiosk:one", "PF211", "(environ, start_response)"),
        ("kiosk:API", "PF211", "did you mean kiosk:API()?"),
        ("kiosk:Evented", "PF211", "did you mean kiosk:Evented()?"),
    ],
)
def test_what_names_no_application_is_told_with_what_to_do(spec: str, code: str, words: str, folder: Path) -> None:
    with pytest.raises(AppNotFound) as caught:
        load_app(spec, str(folder))
    assert (caught.value.code, caught.value.exit_code) == (code, 2)
    assert words in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_module_that_is_named_like_the_application_is_none(folder: Path) -> None:
    load_app("package.app:app", str(folder))
    with pytest.raises(AppNotFound, match=r"package\.app is a module: give package\.app:app"):
        load_app("package", str(folder))
    with pytest.raises(AppNotFound, match=r"is a module, not callable: give package\.app:NAME"):
        load_app("package:app", str(folder))


def test_a_directory_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(AppNotFound, match=r"nowhere.*PF209"):
        load_app("plain:app", str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("raising:app", "PF206", "importing raising failed: LookupError: no database"),
        ("leaving:app", "PF206", "importing leaving failed: SystemExit: enough"),
        ("lacking:app", "PF206", "there_is_no_such_module"),
        ("asking:app", "PF206", "asking.nowhere"),
        ("kiosk:lazy.app", "PF206", "kiosk:lazy.app failed: LookupError"),
        ("kiosk:create_broken()", "PF207", "kiosk:create_broken() failed: LookupError"),
    ],
)
def test_what_the_applications_code_raises_comes_with_a_traceback_of_that_code_alone(
    spec: str, code: str, words: str, folder: Path
) -> None:
    with pytest.raises(AppFailed) as caught:
        load_app(spec, str(folder))
    assert (caught.value.code, caught.value.exit_code) == (code, 1)
    assert words in str(caught.value)
    trace = getattr(caught.value.__cause__, "__traceback__", None)
    assert trace is not None
    assert trace.tb_frame.f_code.co_filename.startswith(str(folder))


def test_an_interrupt_while_importing_is_the_users(folder: Path) -> None:
    (folder / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_app("interrupted:app", str(folder))


def test_the_directory_of_the_application_is_looked_in_first_and_stays(folder: Path) -> None:
    load_app("plain:app", str(folder))
    load_app("second:application", str(folder))
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1


class Both:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class Asynchronous:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any: ...


class Old:
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any: ...


class Double:
    """An application of ASGI 2, called twice."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await send((self.scope, await receive()))


def called_once(scope: Any) -> Double:
    return Double(scope)


class Answer:
    """An application that is a class: its instances are the answers (PEP 3333)."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...


async def coroutine(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (lambda environ, start_response: (), "wsgi"),
        (lambda environ, start_response, more=None: (), "wsgi"),
        (lambda *args: (), "wsgi"),
        (Both(), "wsgi"),
        (Answer, "wsgi"),
        (Both().__call__, "wsgi"),
        (dict, "wsgi"),
        (coroutine, "asgi"),
        (Asynchronous(), "asgi"),
        (Asynchronous().__call__, "asgi"),
        (Old(), "asgi"),
        (Double, "asgi"),
    ],
)
def test_the_protocol_is_seen_by_how_it_is_called(app: Callable[..., Any], kind: str) -> None:
    assert kind_of(app) == kind


@pytest.mark.parametrize(
    ("app", "interface", "code"),
    [
        (coroutine, "wsgi", "PF205"),
        (lambda environ, start_response: (), "asgi", "PF212"),
    ],
)
def test_who_says_which_protocol_it_is_is_held_to_it(app: Callable[..., Any], interface: str, code: str) -> None:
    with pytest.raises(AppNotFound, match="leave interface alone") as caught:
        load_app(app, interface=interface)
    assert caught.value.code == code


@pytest.mark.parametrize("app", [Double, called_once], ids=["a class", "a function"])
def test_an_application_of_asgi_2_is_called_twice(app: Callable[..., Any]) -> None:
    heard: list[Any] = []

    async def receive() -> str:
        return "message"

    async def send(message: Any) -> None:
        heard.append(message)

    with pytest.raises(StopIteration):
        as_single(app)("scope", receive, send).__await__().__next__()  # it waits for nothing
    assert heard == [("scope", "message")]


def test_a_callable_stands_for_itself_and_is_held_to_the_same() -> None:
    app = Both()
    assert load_app(app) is app
    assert load_app(coroutine) is coroutine
    with pytest.raises(AppNotFound, match=r"Both does not take .* call it, if it makes the application \[PF211\]"):
        load_app(Both)
    with pytest.raises(AppNotFound, match=r"<lambda> does not take .* call it, if it makes the application \[PF211\]"):
        load_app(lambda: app)


def test_the_garbage_collector_looks_seldom_while_an_application_is_imported(folder: Path) -> None:
    before = gc.get_threshold()
    load_app("looking", str(folder))
    assert sys.modules["looking"].seen > before
    assert gc.get_threshold() == before


def test_what_an_application_wants_of_the_garbage_collector_stands(folder: Path) -> None:
    before = gc.get_threshold()
    try:
        load_app("deciding", str(folder))
        assert gc.get_threshold() == (7, 8, 9)
    finally:
        gc.set_threshold(*before)
