"""As whom does the application run, and what is said to who may not?"""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from prefork.config import Config
from prefork.errors import ConfigError
from prefork.privileges import drop, refuse_late, resolve_ids

ROOT = pwd.getpwuid(0)
UNNAMED = "4242424"


@pytest.mark.parametrize(
    ("user", "group", "ids"),
    [
        (None, None, (None, None)),
        (ROOT.pw_name, None, (0, ROOT.pw_gid)),
        ("0", None, (0, ROOT.pw_gid)),
        (None, grp.getgrgid(0).gr_name, (None, 0)),
        (None, "17", (None, 17)),
        (ROOT.pw_name, "17", (0, 17)),
        (UNNAMED, "17", (int(UNNAMED), 17)),
    ],
)
def test_users_and_groups_are_found_by_name_and_number(
    user: str | None, group: str | None, ids: tuple[int | None, int | None]
) -> None:
    assert resolve_ids(user, group) == ids


@pytest.mark.parametrize(
    ("user", "group", "words"),
    [
        ("no such user", None, "there is no user 'no such user': check the option user"),
        (None, "no such group", "there is no group 'no such group': check the option group"),
        (UNNAMED, None, "give the option group as well"),
        ("4294967295", None, "there is no user '4294967295'"),  # "leave it" to the system, never a user
        ("-1", None, "there is no user '-1'"),
        (None, "\u0663", "there is no group"),
    ],
)
def test_who_does_not_exist_is_told(user: str | None, group: str | None, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_ids(user, group)
    assert (caught.value.code, caught.value.exit_code) == ("PF309", 2)
    assert words in str(caught.value)


class System:
    """A process with its ids, which notes how they are changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, uid: int, gid: int) -> None:
        self.calls: list[tuple[str, object]] = []
        for name, answer in (("getuid", uid), ("geteuid", uid), ("getgid", gid), ("getegid", gid)):
            monkeypatch.setattr(os, name, lambda answer=answer: answer)
        for name in ("setgroups", "setgid", "setuid"):
            monkeypatch.setattr(os, name, lambda value, name=name: self.note(name, value))
        monkeypatch.setattr(os, "getgrouplist", lambda name, group: [group, 100, len(name)])
        self.may = uid == 0

    def note(self, name: str, value: object) -> None:
        if not self.may:
            raise PermissionError(name)
        self.calls.append((name, value))


def test_groups_are_left_before_the_group_and_that_before_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 0, 0)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: pwd.struct_passwd(("shop", "x", 17, 18, "", "/", "")))
    drop(Config.of(user="17"))
    assert system.calls == [("setgroups", [18, 100, 4]), ("setgid", 18), ("setuid", 17)]


def test_a_user_without_a_name_has_no_other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 0, 0)
    drop(Config.of(user=UNNAMED, group="18"))
    assert system.calls == [("setgroups", [18]), ("setgid", 18), ("setuid", int(UNNAMED))]


def test_a_group_alone_leaves_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 0, 0)
    drop(Config.of(group="18"))
    assert system.calls == [("setgroups", [18]), ("setgid", 18)]


@pytest.mark.parametrize("options", [{}, {"user": "0"}, {"user": "0", "group": "0"}], ids=str)
def test_who_is_it_already_changes_nothing(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, 0, ROOT.pw_gid)
    drop(Config.of(**options))
    assert system.calls == []


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"user": ROOT.pw_name}, f"cannot become user '{ROOT.pw_name}'"),
        ({"user": "0", "group": "18"}, "cannot become user '0' and group '18'"),
    ],
)
def test_who_may_not_is_told(options: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    System(monkeypatch, 1000, 1000)
    with pytest.raises(ConfigError) as caught:
        drop(Config.of(**options))
    assert (caught.value.code, caught.value.exit_code) == ("PF310", 2)
    assert str(caught.value).startswith(f"{wanted}: only root may: start as root")


@pytest.mark.parametrize("options", [{"user": UNNAMED, "group": "18"}, {"group": "18"}], ids=str)
def test_root_who_has_loaded_the_application_is_refused(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System(monkeypatch, 0, 0)
    with pytest.raises(ConfigError, match=r"group '18' comes too late: root has loaded .*User=.*PF310"):
        refuse_late(Config.of(**options))
    assert system.calls == []


@pytest.mark.parametrize(("uid", "options"), [(0, {}), (0, {"group": "0"}), (1000, {"group": "18"})], ids=str)
def test_who_is_not_root_or_stays_it_is_not_refused(
    uid: int, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    System(monkeypatch, uid, 0)
    refuse_late(Config.of(**options))
