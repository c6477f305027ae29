"""As whom does the application run?"""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING

from prefork.errors import ConfigError

if TYPE_CHECKING:
    from prefork.config import Config


def resolve_ids(user: str | None, group: str | None) -> tuple[int | None, int | None]:
    """Return the ids of a user and a group, given by name or number; a user brings his own group.

    Raises ``ConfigError`` for one that does not exist.
    """
    uid = gid = None
    if user is not None:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        except KeyError:
            raise ConfigError("PF309", f"there is no user {user!r}", "check the option user") from None
        uid, gid = entry.pw_uid, entry.pw_gid
    if group is not None:
        try:
            gid = (grp.getgrgid(int(group)) if group.isdigit() else grp.getgrnam(group)).gr_gid
        except KeyError:
            raise ConfigError("PF309", f"there is no group {group!r}", "check the option group") from None
    return uid, gid


def drop(config: Config) -> None:
    """Become ``user`` and ``group``; to be called after binding and before the application's code runs.

    Raises ``ConfigError`` if this process may not.
    """
    uid, gid = resolve_ids(config.user, config.group)
    try:
        if gid is not None and gid != os.getegid():
            if uid is not None:
                os.initgroups(pwd.getpwuid(uid).pw_name, gid)
            os.setgid(gid)
        if uid is not None and uid != os.geteuid():
            os.setuid(uid)
    except PermissionError:
        wanted = config.user or config.group
        raise ConfigError(
            "PF310", f"cannot become {wanted!r}", "only root can: start as root, or leave user and group out"
        ) from None
