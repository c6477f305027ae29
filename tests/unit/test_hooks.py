"""Who is called when, and what if it raises?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefork.config import Config
from prefork.errors import AppFailed, ConfigError, PreforkError
from prefork.hooks import Hooks, load_hook
from prefork.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = """
class Mail:
    def open(self, worker): return "opened"
mail, number = Mail(), 1
def hook(pool): return "called"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory with modules of hooks, of which nothing is left afterwards."""
    (tmp_path / "mailing.py").write_text(MODULE)
    (tmp_path / "breaking.py").write_text("raise LookupError('no database')\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("mailing", "breaking"):
        sys.modules.pop(name, None)


def test_a_hook_is_found_by_its_name(folder: Path) -> None:
    assert load_hook("mailing:hook", str(folder))(None) == "called"
    assert load_hook("mailing:mail.open", str(folder))(None) == "opened"
    assert sys.path[0] == str(folder)


def test_a_callable_stands_for_itself() -> None:
    assert load_hook(print, ".") is print


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mailing:nothing", ConfigError, "name it as module:function"),
        ("nowhere:hook", ConfigError, "No module named 'nowhere'"),
        ("mailing:number", ConfigError, "is a int: name a function"),
        (":hook", ConfigError, "name it as module:function"),
        ("breaking:hook", AppFailed, "LookupError: no database"),
    ],
)
def test_a_hook_that_cannot_be_had_is_told(name: str, kind: type[PreforkError], words: str, folder: Path) -> None:
    with pytest.raises(PreforkError) as caught:
        load_hook(name, str(folder))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.exit_code) == ("PF413", 2 if kind is ConfigError else 1)
    assert repr(name) in str(caught.value)
    assert words in str(caught.value)


def test_hooks_are_taken_from_the_configuration_and_imported_when_they_may_be(folder: Path) -> None:
    hooks = Hooks.of(Config.of(before_fork="mailing:hook", worker_started=print))
    assert (hooks.before_fork, hooks.worker_started, hooks.worker_exiting) == (["mailing:hook"], [print], [])
    hooks.load(str(folder), "worker_started", "worker_exiting")
    assert "mailing" not in sys.modules
    hooks.load(str(folder), "before_fork")
    assert [callable(hook) for hook in hooks.before_fork] == [True]


def test_hooks_are_called_in_their_order_and_one_that_raises_stops_no_other() -> None:
    calls: list[tuple[str, object]] = []
    told: list[tuple[str, Any]] = []

    def broken(_subject: object) -> None:
        raise LookupError("gone")

    records = Records(Config.of(log_format="none", on_record=lambda name, fields: told.append((name, fields))))
    hooks = Hooks(worker_exiting=[lambda it: calls.append(("a", it)), broken, lambda it: calls.append(("b", it))])
    try:
        hooks.run("worker_exiting", 7, records=records)
        hooks.run("before_fork", 7, records=records)
    finally:
        records.close()
    assert calls == [("a", 7), ("b", 7)]
    assert [(name, fields["hook"]) for name, fields in told] == [("hook.failed", "worker_exiting")]


def test_a_hook_after_which_nothing_can_be_trusted_raises() -> None:
    def broken(_subject: object) -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError):
        Hooks(worker_started=[broken]).run_or_raise("worker_started", 7)
