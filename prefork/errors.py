"""What can go wrong, what is it called, and what should the user do?

Every error of ours carries a stable code; the page ``docs/errors`` has a section for each.
"""

from __future__ import annotations

CODES: dict[str, str] = {}


class PreforkError(Exception):
    """An error that a user can act on.

    ``code`` is stable and documented, ``hint`` says what to do, ``exit_code`` is the status with which a
    command ends: 1 when the server cannot bind or boot, 2 for a mistake in the command or its options.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint} [{self.code}]" if self.hint else f"{self.message} [{self.code}]"


class ConfigError(PreforkError):
    """An option is unknown, has a wrong value, or contradicts another."""

    exit_code = 2


class AppNotFound(PreforkError):
    """The application that was named does not exist or cannot be served."""

    exit_code = 2


class AppFailed(PreforkError):
    """The application's own code raised while it was loaded; ``__cause__`` is what it raised."""


class BindError(PreforkError):
    """An address cannot be listened on."""


class BootError(PreforkError):
    """The pool could not be brought up."""


class MissingExtra(PreforkError):
    """A feature needs a library that is not installed."""

    exit_code = 2


class PlatformUnsupported(PreforkError):
    """This system cannot run a preforking server."""

    exit_code = 2
