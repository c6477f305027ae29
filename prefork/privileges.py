"""As whom does the application run?"""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING

from prefork.errors import ConfigError

if TYPE_CHECKING:
    from prefork.config import Config

Ids = tuple[int | None, int | None]


def resolve_ids(user: str | None, group: str | None) -> Ids:
    """Return the ids of a user and a group, given by name or number; ``None`` for what is to stay as it is.

    A user brings his own group, unless another one is given. A number that has no name here, as in many containers,
    brings none, so ``group`` must be given too. Raises ``ConfigError`` for what does not exist.
    """
    gid = None if group is None else _gid(group)
    if user is None:
        return None, gid
    entry = _entry(user)
    if entry is not None:
        return entry.pw_uid, entry.pw_gid if gid is None else gid
    if not _is_id(user):
        raise ConfigError("PF309", f"there is no user {user!r}", "check the option user")
    if gid is None:
        raise ConfigError("PF309", f"user {user} has no name here, and so no group", "give the option group as well")
    return int(user), gid


def drop(config: Config) -> None:
    """Become ``user`` and ``group``, for good; to be called after binding and before the application's code runs.

    The supplementary groups of the user who started us are left too. Raises ``ConfigError`` if this process may not.
    """
    uid, gid = resolve_ids(config.user, config.group)
    if _are_ours(uid, gid):
        return
    try:
        # In this order: who has given up root may not change his groups any more.
        if os.geteuid() == 0:
            os.setgroups(_groups(uid, gid))
        if gid is not None:
            os.setgid(gid)
        if uid is not None:
            os.setuid(uid)
    except PermissionError:
        hint = "only root may: start as root, or leave user and group out"
        raise ConfigError("PF310", f"cannot become {_described(config)}", hint) from None


def refuse_late(config: Config) -> None:
    """Raise ``ConfigError`` if the application is loaded by root, and to be served by somebody else.

    What its code may have done or opened by then, no change of user takes back.
    """
    if os.geteuid() == 0 and not _are_ours(*resolve_ids(config.user, config.group)):
        hint = "start as that user, by User= of systemd or setpriv, or let prefork --user load it"
        raise ConfigError("PF310", f"{_described(config)} comes too late: root has loaded the application", hint)


def _described(config: Config) -> str:
    wanted = (("user", config.user), ("group", config.group))
    return " and ".join(f"{name} {value!r}" for name, value in wanted if value is not None)


def _are_ours(uid: int | None, gid: int | None) -> bool:
    return uid in {None, os.getuid()} and gid in {None, os.getgid()} and os.getuid() == os.geteuid()


def _groups(uid: int | None, gid: int | None) -> list[int]:
    """Return all groups of the user, or the group alone where only that changes, or the user has no name."""
    group = os.getgid() if gid is None else gid
    try:
        return [group] if uid is None else os.getgrouplist(pwd.getpwuid(uid).pw_name, group)
    except KeyError:
        return [group]


def _entry(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(user)) if _is_id(user) else pwd.getpwnam(user)
    except KeyError:
        return None


def _gid(group: str) -> int:
    if _is_id(group):
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError("PF309", f"there is no group {group!r}", "check the option group") from None


def _is_id(text: str) -> bool:
    # The last number means "leave it" to the system.
    return text.isascii() and text.isdigit() and int(text) < 2**32 - 1
