"""Which edit is noticed, and which file is none of the project's?"""

from __future__ import annotations

import os
import sysconfig
from typing import TYPE_CHECKING, cast

import pytest

from prefork import reloader
from prefork.config import Config
from prefork.errors import BindError
from prefork.reloader import Watch, edited, project_roots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "views.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def watch(project: Path, *files: str, exclude: tuple[str, ...] = ()) -> Watch:
    return Watch((str(project),), tuple(str(project / file) for file in files), exclude)


def test_nothing_happened_is_none(project: Path) -> None:
    look = watch(project)
    assert look() is None
    assert look() is None


def test_an_edit_is_told_once(project: Path) -> None:
    look = watch(project)
    (project / "shop" / "views.py").write_text("x = 1\n")
    assert look() == str(project / "shop" / "views.py")
    assert look() is None


def test_an_edit_that_keeps_the_size_is_told(project: Path) -> None:
    look = watch(project)
    os.utime(project / "shop" / "views.py", ns=(1, 1))
    assert look() == str(project / "shop" / "views.py")


def test_a_removed_file_is_told(project: Path) -> None:
    look = watch(project)
    (project / "shop" / "views.py").unlink()
    assert look() == str(project / "shop" / "views.py")
    assert look() is None


def test_a_new_module_is_told_even_in_a_new_folder(project: Path) -> None:
    look = watch(project)
    (project / "shop" / "models").mkdir()
    assert look() is None
    (project / "shop" / "models" / "order.py").write_text("")
    assert look() == str(project / "shop" / "models" / "order.py")


def test_a_new_module_in_a_folder_long_unchanged_is_told(project: Path) -> None:
    os.utime(project / "shop", (1, 1))
    look = watch(project)
    assert look() is None
    (project / "shop" / "orders.py").write_text("")
    assert look() == str(project / "shop" / "orders.py")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("notes.txt", id="no Python"),
        pytest.param("shop/.#views.py", id="an editor's lock"),
        pytest.param(".git/hook.py", id="hidden folder"),
        pytest.param("env/lib/thing.py", id="virtual environment"),
        pytest.param("node_modules/gyp.py", id="somebody else's"),
        pytest.param("shop/__pycache__/views.py", id="cache"),
    ],
)
def test_what_is_no_part_of_the_project_is_not_told(project: Path, name: str) -> None:
    (project / "env").mkdir()
    (project / "env" / "pyvenv.cfg").write_text("")
    look = watch(project)
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text("changed")
    assert look() is None


def test_an_extra_file_is_told(project: Path) -> None:
    look = watch(project, "notes.txt")
    (project / "notes.txt").write_text("changed")
    assert look() == str(project / "notes.txt")


def test_an_extra_file_that_comes_later_is_told(project: Path) -> None:
    look = watch(project, "later.toml")
    (project / "later.toml").write_text("")
    assert look() == str(project / "later.toml")


def test_any_file_in_an_extra_folder_is_told_though_it_lies_below_a_root(project: Path) -> None:
    (project / "templates" / "shop").mkdir(parents=True)
    (project / "templates" / "shop" / "cart.html").write_text("")
    look = watch(project, "templates")
    (project / "templates" / "shop" / "cart.html").write_text("changed")
    assert look() == str(project / "templates" / "shop" / "cart.html")


def test_an_excluded_file_is_not_told(project: Path) -> None:
    look = watch(project, exclude=("*/views.py",))
    (project / "shop" / "views.py").write_text("changed")
    (project / "shop" / "orders.py").write_text("")
    assert look() == str(project / "shop" / "orders.py")
    assert look() is None


def test_a_learned_file_is_told_when_it_changes_and_not_when_it_is_learned(project: Path) -> None:
    look = watch(project)
    look.learn([str(project / "notes.txt")])
    assert look() is None
    (project / "notes.txt").write_text("changed")
    assert look() == str(project / "notes.txt")


def test_edited_takes_note_of_all_edits_at_once(project: Path) -> None:
    look = watch(project, "notes.txt")
    (project / "shop" / "views.py").write_text("changed")
    (project / "notes.txt").write_text("changed")
    assert edited(look)
    assert not edited(look)


def test_an_edit_between_two_looks_is_not_lost() -> None:
    looks: Iterator[str | None] = iter([None, "/shop/views.py", None, None])
    look = cast("Watch", lambda: next(looks))
    assert not edited(look)
    assert edited(look)
    assert not edited(look)


def test_a_root_is_no_library_and_not_the_whole_disk(project: Path) -> None:
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "scripts")]
    assert project_roots([str(project), "/", str(project / "nowhere"), *libraries]) == (str(project),)


def test_a_root_inside_of_another_is_walked_once(project: Path) -> None:
    assert project_roots([str(project / "shop"), str(project), str(project)]) == (str(project),)


def test_the_current_folder_is_a_root_by_its_empty_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert project_roots([""]) == (str(project),)


def test_without_its_mark_a_process_is_not_inside() -> None:
    assert not reloader.inside()
    with pytest.raises(BindError, match="PF602"):
        reloader.inherited_listeners(Config())
