"""What can go wrong, what is it called, and what should the user do?

Every error of ours carries a stable code; the page ``docs/errors`` has a section for each.
"""

from __future__ import annotations

import sys
import traceback

from prefork import origin

CODES: dict[str, str] = {
    "PF101": "there is no such option",
    "PF102": "a value cannot be",
    "PF103": "two options contradict each other",
    "PF104": "the configuration file cannot be read",
    "PF105": "a log file cannot be opened",
    "PF106": "lines of the log were lost",
    "PF201": "that names no application",
    "PF202": "there is no such module",
    "PF203": "the module has no such attribute",
    "PF204": "what was named is not callable",
    "PF205": "this is an ASGI application",
    "PF206": "importing the application failed",
    "PF207": "the factory failed",
    "PF208": "no application was named",
    "PF209": "the directory of the application is missing",
    "PF210": "the factory takes other arguments",
    "PF211": "this is called in another way than a WSGI application",
    "PF212": "this is called in another way than an ASGI application",
    "PF213": "the application's startup failed",
    "PF301": "this is no address",
    "PF302": "this is no port",
    "PF303": "the address is in use",
    "PF304": "permission denied",
    "PF305": "the address is not ours",
    "PF306": "the path is taken",
    "PF307": "the descriptor cannot be served",
    "PF308": "listening failed",
    "PF309": "no such user or group",
    "PF310": "privileges cannot be changed",
    "PF311": "the name does not resolve",
    "PF312": "the path cannot hold a socket",
    "PF313": "too many files are open",
    "PF314": "an address is named twice",
    "PF315": "what is passed on cannot be read",
    "PF316": "two programs pass sockets on",
    "PF317": "bind is given beside inherited sockets",
    "PF320": "ssl_context is no context for TLS",
    "PF321": "the certificate or its key cannot be used",
    "PF322": "a certificate for development needs cryptography",
    "PF323": "the certificate was not renewed",
    "PF401": "the application could not be started in a worker",
    "PF402": "workers die too quickly",
    "PF404": "the system refuses to fork",
    "PF405": "something in the parent is not safe to fork",
    "PF407": "this system cannot fork",
    "PF410": "the pool was used before",
    "PF411": "the pid file belongs to a living process",
    "PF412": "the pid file cannot be written",
    "PF413": "a hook cannot be loaded",
    "PF414": "warming up failed",
    "PF415": "the pool could not be started",
    "PF416": "the pool cannot be forked",
    "PF417": "the pool was stopped before it was ready",
    "PF418": "the directory cannot be entered",
    "PF419": "the parser is not installed",
    "PF420": "the keeper cannot be started",
    "PF421": "new code was not deployed",
    "PF422": "new code did not answer the probe",
    "PF423": "the parent of the workers died",
    "PF430": "a worker does not answer",
    "PF431": "the exit guard is held although the pool stops",
    "PF432": "the event loop is held up",
    "PF433": "a hook failed",
    "PF434": "the application raised in its lifespan",
    "PF435": "a worker serves on beyond its time",
    "PF436": "a worker was killed",
    "PF437": "a connection could not be handed over",
    "PF438": "a worker came to an unwanted end",
    "PF440": "the event loop is not installed",
    "PF441": "WebSockets cannot be spoken",
    "PF442": "an event loop cannot be served on this system",
    "PF501": "no connection can be accepted",
    "PF502": "a request took too long",
    "PF503": "a field that speaks for a client was ignored",
    "PF504": "clients were turned away",
    "PF505": "the system refused a further thread",
    "PF506": "an answer cannot wait on a disk",
    "PF510": "a request was cancelled because the pool stops",
    "PF601": "the program is started anew after the next edit",
    "PF602": "there are no sockets of a reloader",
    "PF603": "a call that would start a server inside of a flask command was ignored",
    "PF605": "the address is given twice",
    "PF606": "the sockets had to be opened before the application could say where",
    "PF607": "not a valid port number or address:port pair",
    "PF608": "ALLOWED_HOSTS is empty and DEBUG is False",
}
"""Every code, and what it stands for."""


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


class NotHere(ConfigError):
    """An option asks for what this machine does not have, and the one that is to serve may have."""


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


def traceback_of(error: BaseException) -> str:
    """Return the traceback of what is to blame for a failure.

    An error of ours says in one line what is wrong, and where in our code that was found is nobody's concern: it is that
    of its cause, and empty if it has none.
    """
    to_blame = error.__cause__ if isinstance(error, PreforkError) else error
    return "" if to_blame is None else "".join(traceback.format_exception(to_blame))


def report(error: PreforkError) -> int:
    """Tell the user of an error, and return the exit status.

    On stderr in one line, behind the traceback of the application where that is what failed; by a record of the pool
    that goes on serving, if this process was to take its place.
    """
    trace = traceback_of(error)
    if origin.tell_failure(error, reason=str(error), trace=trace):
        return error.exit_code
    theirs = trace if isinstance(error, AppFailed) else ""
    print(f"{theirs}prefork: error: {error}", file=sys.stderr)  # noqa: T201
    return error.exit_code
