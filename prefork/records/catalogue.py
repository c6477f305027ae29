"""Which records are there, at which level, and with which fields?

Names never carry data and never change. The past tense is for facts, ``-ing`` for the start of a phase. Numbers carry
their unit (``_s``, ``_bytes``). In a record ``pid`` is who wrote it, ``child_pid`` whom it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

LOGGERS = ("prefork", "prefork.access", "prefork.error")
"""Loggers of the standard library: the life of the pool, requests, and what the application raised."""

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

FIRST = ("timestamp", "level", "logger", "event")
"""What each record begins with."""

EMITTER: Mapping[str, str] = {
    "pid": "process id of who wrote it",
    "role": "`parent` or `worker`; `keeper` where there is no parent that could",
    "worker": "number of the worker, from 0; reused",
    "generation": "which image of the application, from 1; each deploy that is tried has the next number",
}
"""Who wrote a record; ``worker`` is the subject's number where the parent writes about one."""

FIELDS: Mapping[str, str] = {
    "address": "host or path listened on",
    "age_s": "seconds since the application was called",
    "after_s": "age of the worker in seconds",
    "app": "the application as it was named; of one that was given as an object the name of that, or of its class",
    "attempts": "how many workers failed",
    "blocked_s": "seconds since the event loop was asked in vain",
    "boot_s": "seconds from the fork (for the pool, from the start) until it served",
    "budget": "requests after which the worker is to be replaced; none if there is no limit",
    "child_pid": "process id of the worker that the record is about",
    "client": "address of the client",
    "close_code": "the code of the end: RFC 6455 section 7.4.1",
    "code": "what to do about it: the section of that name on the page of errors",
    "connections_lost": "how many connections it held besides those with a request in `requests_lost`",
    "delay_s": "seconds until the next fork, or until the stop",
    "duration_s": "seconds from the call of the application until the kernel had the last byte of its answer",
    "error": "the system's words",
    "exception": "the traceback",
    "exit_code": "status of the process; none if a signal ended it, or other code in the parent has reaped it",
    "expected": "whether it was asked to go, and went by itself",
    "failures": "how many workers died quickly in a row",
    "field": "name of a header field",
    "findings": "a list: `kind` (thread, socket, executor, event_loop), `what`, `where`, `remedy`",
    "graceful": "whether running requests may finish",
    "holds": "a list, the oldest first: `why` in the application's words, `age_s`, and at level debug `where` it was taken",
    "hook": "which hook",
    "host": "the host that was asked for, with its port if it was given",
    "http_version": "1.0 or 1.1",
    "inherited_as": "the name under which the socket was passed on: Server::Starter's key, or systemd's name",
    "inherited_fd": "number of the descriptor, if the socket was inherited",
    "keeper_pid": "process id of the keeper, which was started and to which signals are sent",
    "lines": "how many",
    "log": "the file; `stderr`",
    "memory_bytes": "private memory: what the worker does not share with the others",
    "method": "method of the request",
    "new_generation": "generation of the newer pool",
    "new_starter_generation": "the same under Server::Starter: its count of starts",
    "note": "what that means",
    "oom_kill": "how many processes of the control group the kernel has killed meanwhile for want of memory",
    "outcome": "how a request ended: `complete`; `client_gone` before it had its answer; `failed`, the application raised; `timeout`, it took longer than `request_timeout`; `turned_away`, it had waited longer than `queue_timeout`",
    "overrun": "requests served beyond the budget, while the successor was not ready",
    "path": "path of the request, as it was sent; of a reload, the file",
    "phase": "`startup` or `shutdown`",
    "pause_s": "seconds until it is tried again",
    "port": "port listened on",
    "preload": "whether the application is loaded before the fork",
    "python": "version of Python",
    "query": "what stood behind the question mark",
    "queue_s": "seconds that a request had waited until a thread took it; none if nobody knows",
    "reason": "why, in one word or a short sentence",
    "referer": "the page that led there, as the client says",
    "request_bytes": "length of the body that came in",
    "request_id": "the id of the request, with `request_id`; else as the application has bound it (structlog's contextvars)",
    "requests": "requests served",
    "requests_lost": "a list, of what was being served: `method`, `path`, `age_s` (seconds since the application was called)",
    "response_bytes": "length of the body that went out; of an answer that a client did not wait for, what was made of it",
    "rss_bytes": "resident memory when it was last looked at",
    "scheme": "http or https",
    "signal": "name of the signal",
    "silent_s": "seconds since it was first asked in vain",
    "source": "the rule: a section of an RFC, the option that asks for it, or the library that refused",
    "stack": "what each thread was doing, the innermost call first",
    "starter_generation": "Server::Starter's count of its starts",
    "status": "status of the answer; 499 if the client left before there was one",
    "stuck": "request threads that were given up, and left behind",
    "stopped": "whether the process is stopped (state T)",
    "tasks": "a list: name and function of each",
    "threads": "request threads in each worker",
    "timeout_s": "seconds until what is left is killed",
    "turned_away": "how many since the last such record",
    "uptime_s": "age in seconds",
    "url": "where to find it",
    "user_agent": "what the client calls itself",
    "version": "version of prefork",
    "workers": "number of workers",
    "workers_counted": "how the number came about, if it was asked for by `auto`",
    "workers_from": "number before",
    "workers_to": "number after",
}
"""Every further field, and what it means. One word, one thing."""


class RecordSpec(Value):
    """A kind of record: its level, who writes it, when, and with which fields; ``optional`` ones may be missing.

    ``worse`` is the level of the bad cases (see ``level_of``). ``code`` names the section of the page of errors; where there
    are bad cases, they alone have it.
    """

    level: str
    by: str
    help: str
    fields: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    logger: str = "prefork"
    worse: str = ""
    code: str = ""

    def level_of(self, fields: Mapping[str, Any]) -> str:
        """Return the level of one record: the worse one if nobody wanted it, or the server failed."""
        if self.worse and (not fields.get("expected", True) or fields.get("status", 0) >= 500):  # noqa: PLR2004 - RFC 9110 15.6
            return self.worse
        return self.level

    def code_of(self, fields: Mapping[str, Any]) -> str:
        """Return the code of one record; empty if there is none, or nothing to do about it."""
        return self.code if self.level_of(fields) == (self.worse or self.level) else ""

    def problems(self, fields: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the fields of one record, in words."""
        known = {*self.fields, *self.optional, *FIRST, *EMITTER, "code", "exc_info", "traceback"}
        return [
            *(f"{name} is missing" for name in self.fields if name not in fields),
            *(f"{name} is not in the catalogue" for name in fields if name not in known),
        ]


def _spec(level: str, by: str, text: str, fields: str = "", optional: str = "", **more: str) -> RecordSpec:
    return RecordSpec(level, by, text, tuple(fields.split()), tuple(optional.split()), **more)


# fmt: off
CATALOGUE: Mapping[str, RecordSpec] = {
    "pool.starting": _spec("info", "parent", "The parent runs; the application is not loaded yet.", "version python app workers threads preload", "workers_counted starter_generation keeper_pid"),
    "pool.listening": _spec("info", "parent", "A socket is open: one record each.", "url", "address port scheme inherited_fd inherited_as"),
    "pool.fork_unsafe": _spec("warning", "parent", "Something in the parent would be missing in the workers, or shared by them. Once, before the first fork.", "findings", code="PF405"),
    "pool.warm_up_refused": _spec("warning", "parent", "What `warm_up` asked for was answered with a status from 400 to 499: little was warmed up. For 400 look at the host, which the application may have to be told of.", "path host status", code="PF414"),
    "pool.ready": _spec("info", "parent", "All workers serve.", "workers boot_s"),
    "pool.recycling": _spec("info", "parent", "All workers are replaced, new ones first.", "signal note"),
    "pool.recycled": _spec("info", "parent", "All workers are replaced: of those that served when it was ordered, the last has stopped to.", "workers"),
    "pool.reloading": _spec("info", "parent", "A file changed: the program starts anew.", "reason path"),
    "pool.deploying": _spec("info", "parent", "HUP asked for new code: a pool of it starts, and this one serves on.", "reason new_generation"),
    "pool.deployed": _spec("info", "parent", "The new pool serves, by itself from now on. `reason`: `signal`, or `death` of the one before.", "reason workers boot_s"),
    "pool.deploy_failed": _spec("error", "either", "The new pool cannot serve; this one goes on as if nothing had happened. By the keeper if there is none: it tries again.", "reason new_generation code", "exception", code="PF421"),
    "pool.superseded": _spec("info", "parent", "A newer pool serves: all workers of this one retire.", "", "new_generation new_starter_generation"),
    "pool.died": _spec("error", "keeper", "The parent of the workers died: its workers finish what they have, and a new pool is started.", "reason", code="PF423"),
    "pool.scaling": _spec("info", "parent", "The number of workers is changed.", "workers_from workers_to reason"),
    "pool.fork_failed": _spec("error", "parent", "The system refused to fork; it is tried again.", "error delay_s", code="PF404"),
    "pool.accept_paused": _spec("error", "worker", "No connection can be accepted for now, mostly because all descriptors are used up.", "reason pause_s", code="PF501"),
    "pool.boot_failed": _spec("critical", "parent", "The pool cannot be brought up, and stops. Before the first fork in a `log_file` alone: on stderr the command says it in a line of its own.", "reason attempts code", "exception"),
    "pool.stop_delayed": _spec("info", "parent", "Asked to stop, it serves on for a while: for `stop_delay`, or until the next generation of Server::Starter serves.", "signal", "delay_s reason"),
    "pool.stopping": _spec("info", "parent", "A signal, or the program, asked for the end.", "signal graceful timeout_s"),
    "pool.stopped": _spec("info", "parent", "All workers are gone. The last record of a pool.", "uptime_s requests exit_code"),
    "worker.spawned": _spec("debug", "parent", "A worker was forked.", "worker child_pid budget"),
    "worker.ready": _spec("info", "parent", "A worker serves.", "worker child_pid boot_s"),
    "worker.boot_failed": _spec("error", "parent", "A worker could not start.", "worker child_pid reason", "exception", code="PF401"),
    "worker.retiring": _spec("info", "parent", "A worker is to be replaced; it serves until its successor is ready. Why: `max_requests`, `max_age`, `max_memory`, `app`, `request_timeout`, `unresponsive`, `signal`, `hup`, `usr2`, or `scale_down`, which takes no successor.", "worker child_pid reason", "requests memory_bytes"),
    "worker.retirement_delayed": _spec("warning", "parent", "A worker that is to be replaced serves on, beyond its budget if need be, because its successor cannot be had for now. Once for each.", "worker child_pid reason", code="PF435"),
    "worker.handover_failed": _spec("warning", "worker", "A kept-alive connection could not be handed over to a sibling, or taken over from one.", "reason", code="PF437"),
    "worker.overloaded": _spec("warning", "worker", "Clients were turned away: with 503 because their requests had waited for `queue_timeout`, or their connections were beyond `limit_concurrency`; without a word because they were gone (`client_gone`) when their turn came. Once a second for each `reason`.", "reason turned_away", code="PF504"),
    "worker.thread_refused": _spec("warning", "worker", "The system lets the worker start no further thread: it goes on with those that it has. Once in the life of a worker.", "reason threads", code="PF505"),
    "worker.spool_failed": _spec("warning", "worker", "What a slow client has not taken cannot be written to a temporary file: threads wait for such clients instead. Once in the life of a worker.", "reason", code="PF506"),
    "worker.unresponsive": _spec("error", "parent", "A worker does not answer: its interpreter is stuck, or it is `stopped`, by a signal or a debugger, and then has no stack to show. It is killed as soon as its successor serves.", "worker child_pid silent_s stopped stack", code="PF430"),
    "worker.blocked": _spec("warning", "worker", "ASGI: the event loop does not turn, for something in it does not return. `method` and `path` where that is a request.", "blocked_s stack", "method path client age_s", code="PF432"),
    "worker.tasks_cancelled": _spec("info", "worker", "ASGI: the worker leaves, and cancels what the application has left running. What must be finished takes the exit guard.", "tasks"),
    "lifespan.failed": _spec("error", "worker", "ASGI: the application raised in its lifespan. At its startup it is served nevertheless: so it is with one that knows no lifespan. `serving`: a task of its lifespan has ended, and it is served on without.", "phase", "exception", code="PF434"),
    "worker.held": _spec("warning", "worker", "The pool stops, nine tenths of the time for that are over, and the application still holds the exit guard.", "holds", code="PF431"),
    "worker.killed": _spec("warning", "parent", "A worker was killed: it had its time to stop, or did not answer.", "worker child_pid after_s", code="PF436"),
    "worker.exited": _spec("info", "parent", "A worker is gone: one record for each `worker.spawned`.", "worker child_pid exit_code signal expected reason requests overrun uptime_s", "stuck requests_lost connections_lost rss_bytes oom_kill stack", worse="error", code="PF438"),
    "worker.respawn_delayed": _spec("warning", "parent", "Workers die too quickly: the next fork waits.", "worker child_pid delay_s failures", code="PF402"),
    "tls.handshake_failed": _spec("info", "worker", "A client and the server did not agree to speak TLS.", "reason client"),
    "tls.not_renewed": _spec("error", "parent", "The certificate cannot be read anew at HUP: nothing is replaced, the old one is shown on.", "reason", "exception", code="PF323"),
    "hook.failed": _spec("error", "either", "A hook raised.", "hook", "exception", code="PF433"),
    "log.lines_lost": _spec("warning", "either", "Nobody read the pipe that the log goes to, so lines of this process were thrown away; it is read again.", "log lines", code="PF106"),
    "log.reopen_failed": _spec("error", "either", "A log file cannot be opened anew; the old one is written on.", "log error", code="PF105"),
    "request.finished": _spec("info", "worker", "A request was answered. Only with `access_log`.", "method path query http_version status duration_s queue_s request_bytes response_bytes client scheme host user_agent referer outcome", "request_id", logger="prefork.access", worse="error"),
    "request.failed": _spec("error", "worker", "The application raised.", "method path", "client exception request_id", logger="prefork.error"),
    "request.timeout": _spec("error", "worker", "A request took longer than `request_timeout`: it was answered with 504, or cut if an answer had begun and was not complete. Its worker is replaced.", "method path client status age_s stack", "request_id", code="PF502"),
    "request.cancelled": _spec("warning", "worker", "ASGI: the pool stops, the time for that is nearly over or an endless answer had its `stream_grace`, and the task was cancelled.", "method path client age_s stack", code="PF510"),
    "websocket.unavailable": _spec("warning", "worker", "ASGI: a client asked for a WebSocket, and was answered with 501: the library for that is not installed. Once a worker.", "path", code="PF441"),
    "websocket.failed": _spec("info", "worker", "ASGI: a WebSocket was closed because of its client: `close_code` says to it what `reason` says here.", "path client close_code reason"),
    "request.rejected": _spec("warning", "worker", "A request was refused before the application saw it: `reason` says what was wrong, `source` by which rule. `method` and `path` where its first line was in order; `client` is the one that a trusted proxy names where its whole head was, else who is connected.", "reason source status client", "method path"),
    "request.forwarding_ignored": _spec("warning", "worker", "A peer that is no trusted proxy, but in a network that is not public, spoke for a client; the field was kept from the application. Once a worker for each field.", "field client code", code="PF503"),
}
# fmt: on
"""Every record that there is."""

_PAGE = """\
# What do the records say?

Made from the code by `make docs`.

On a terminal records are for people; elsewhere each is one JSON object on one line (`log_format` decides otherwise).
They go to stderr, or to `log_file`; requests are recorded with `access_log`, `-` for among the others, or a file, and in
[other forms](access-log.md) too. Lines of several processes do not mix; control characters in what clients send are
escaped. After moving files away, send USR1. In systemd's journal each line has its priority.

## With your own logging

They pass through the loggers `prefork` (the life of the pool), `prefork.access` (requests) and `prefork.error` (what
the application raised) of the standard library. What your program has set up there or at the root is used, and then
prefork prints nothing itself. A `ProcessorFormatter` of structlog and a JSON formatter find the fields in `record.msg`,
which is a `dict`; any other formatter finds a line, `worker.exited worker=2 exit_code=0`. Your `structlog.configure` is
neither used nor changed; to have records made by a logger of your own, give it: `WorkerPool(app, logger=…)`.

`on_record` is called with the name and the fields of each record, at whatever level, in the process that wrote it.

With OpenTelemetry, put `prefork.records.otel.rename` into your structlog processors: it gives the semantic conventions'
names to fields, and `prefork.` before that of the record.

## Records

Every record begins with `timestamp` (UTC), `level`, `logger` and `event`, its name; then comes who wrote it:

{emitter}

A `?` is behind what may be missing. A bold level is that of a worker's unwanted end, and of an answer from 500 on.

{records}

## Fields

{fields}
"""


def render_records_markdown() -> str:
    """Return the page of records for the documentation."""
    return _PAGE.format(
        emitter="\n".join(f"- `{name}`: {meaning}" for name, meaning in EMITTER.items()),
        records="\n".join(["| record | level | by | when | fields |", "|---|---|---|---|---|", *_rows()]),
        fields="\n".join(
            ["| field | what it is |", "|---|---|", *(f"| `{n}` | {text} |" for n, text in FIELDS.items())]
        ),
    )


def _rows() -> list[str]:
    rows = []
    for name, spec in CATALOGUE.items():
        level = f"{spec.level}, **{spec.worse}**" if spec.worse else spec.level
        code = ("code",) if spec.code and "code" not in spec.fields else ()
        always, sometimes = (
            (spec.fields, (*spec.optional, *code)) if spec.worse else ((*spec.fields, *code), spec.optional)
        )
        shown = ", ".join([f"`{field}`" for field in always] + [f"`{field}`?" for field in sometimes])
        rows.append(f"| `{name}` | {level} | {spec.by} | {spec.help} | {shown} |")
    return rows
