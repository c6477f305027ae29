"""Who gets the line of a request, and is it wanted at all?"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from select import PIPE_BUF
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from access_entries import entry

from prefork.config import Config
from prefork.errors import ConfigError
from prefork.records import Records
from prefork.records.access import AccessLog, bound_context
from prefork.records.outlet import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS = logging.getLogger("prefork.access")


@contextmanager
def access_log(*, alone: bool = True, **options: Any) -> Iterator[AccessLog]:
    """Give an access log; ``alone`` keeps the handlers that pytest has at the root out of it."""
    records = Records(Config.of(**{"access_log": "-", **options}), strict=True)
    if "access_log_filter" in options:
        records.choose_requests(options["access_log_filter"])
    ours = logging.getLogger("prefork")
    ours.propagate = not alone
    try:
        log = records.bind(role="worker", worker=0, generation=1).access_log()
        assert log is not None
        yield log
    finally:
        records.close()
        ours.propagate = True


def written(log: AccessLog, path: Path, *entries: Any) -> list[str]:
    for one in entries:
        log.take(one)
    log.flush()
    return path.read_text().splitlines()


class Recorder(logging.Handler):
    """A handler of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_nobody_writes_what_nobody_asked_for() -> None:
    assert Records(Config.of()).access_log() is None


def test_lines_wait_for_the_answers_before_them(tmp_path: Path) -> None:
    path = tmp_path / "access"
    with access_log(access_log=str(path)) as log:
        log.take(entry(path=b"/1"))
        log.take(entry(path=b"/2", status="503"))
        assert not path.read_text()
        lines = [json.loads(line) for line in written(log, path)]
    assert [(line["path"], line["level"], line["pid"]) for line in lines] == [
        ("/1", "info", os.getpid()),
        ("/2", "error", os.getpid()),
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"access_log_format": "common"}, "192.0.2.7 - - "),
        ({"access_log_format": "console"}, ' 192.0.2.7 "GET /cups?size=2 HTTP/1.1" 200 1234 1.2s'),
        ({"log_format": "console"}, ' 192.0.2.7 "GET /cups?size=2 HTTP/1.1" 200 1234 1.2s'),
        ({"log_format": "console", "access_log_format": "json"}, '{"timestamp": "'),
        ({"access_log_format": "%m %(worker)s %(generation)s"}, "GET 0 1"),
    ],
)
def test_a_form_of_its_own(options: dict[str, Any], line: str, tmp_path: Path) -> None:
    path = tmp_path / "access"
    with access_log(access_log=str(path), **options) as log:
        (found,) = written(log, path, entry())
    assert line in found


def test_without_a_file_it_goes_to_stderr_in_its_own_form(capsys: pytest.CaptureFixture[str]) -> None:
    with access_log(access_log_format="%m %s") as log:
        assert not log.prompt
        log.take(entry())
        log.flush()
    assert capsys.readouterr().err == "GET 200\n"


@pytest.mark.parametrize("path", ["health", "*"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="a path begins with /"):
        Config(access_log_skip=("/", path))


def test_the_outcome_and_the_id_are_shown_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    with access_log(log_format="console", request_id=True) as log:
        log.take(entry(outcome="client_gone", request_id="a-1"))
        log.flush()
    assert capsys.readouterr().err.endswith(" 200 1234 1.2s client_gone a-1\n")


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("200", '"GET /cups?size=2 HTTP/1.1" \x1b[32m200\x1b[0m'),
        ("302", '\x1b[36m"GET /cups?size=2 HTTP/1.1"\x1b[0m \x1b[36m302\x1b[0m'),
        ("404", '\x1b[33m"GET /cups?size=2 HTTP/1.1"\x1b[0m \x1b[33m404\x1b[0m'),
        ("500", '\x1b[1;31m"GET /cups?size=2 HTTP/1.1"\x1b[0m \x1b[1;31m500\x1b[0m'),
    ],
)
def test_a_terminal_has_the_colour_of_the_status(
    status: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with access_log(log_format="console") as log:
        log.take(entry(status=status))
        log.flush()
    assert f" 192.0.2.7 {shown} 1234 \x1b[2m1.2s\x1b[0m\n" in capsys.readouterr().err


class Odd:
    """A value that cannot be shown."""

    def __str__(self) -> str:
        raise LookupError


def test_what_cannot_be_shown_costs_no_line(tmp_path: Path) -> None:
    path = tmp_path / "access"
    odd = [entry(environ={"SHOP": Odd()}), entry(path=b"/other", environ={"SHOP": "x"})]
    with access_log(access_log=str(path), access_log_format="%U %{SHOP}e") as log:
        assert [json.loads(line)["path"] for line in written(log, path, *odd)] == ["/cups", "/other"]
    with access_log(access_log=str(path)) as log:
        (line,) = written(log, path, entry(context={"cup": Odd()}))[2:]
        assert json.loads(line)["path"] == "/cups"


def test_an_entry_keeps_its_environ_only_where_it_is_read() -> None:
    for form, reads in [("combined", True), ("%{SHOP}e", True), ("%h %s", False), ("json", False)]:
        with access_log(access_log_format=form) as log:
            assert log.reads_environ is reads


def test_paths_are_left_out_unless_they_fail(tmp_path: Path) -> None:
    path = tmp_path / "access"
    entries = [entry(path=name.encode()) for name in ("/health", "/health/2", "/static/a.css", "/static", "/")]
    with access_log(access_log=str(path), access_log_skip="/health,/static/*", access_log_format="%U") as log:
        assert written(log, path, *entries) == ["/health/2", "/static", "/"]
        assert written(log, path, entry(path=b"/health", status="503"))[3:] == ["/health"]


def test_a_filter_sees_the_fields_and_decides(tmp_path: Path) -> None:
    path, seen = tmp_path / "access", list[dict[str, Any]]()

    def wanted(fields: dict[str, Any]) -> bool:
        seen.append(fields)
        return bool(fields["status"] != 404)

    with access_log(access_log=str(path), access_log_filter=wanted, access_log_format="%s") as log:
        assert written(log, path, entry(), entry(status="404")) == ["200"]
    assert [(fields["event"], fields["path"], fields["duration_s"]) for fields in seen] == [
        ("request.finished", "/cups", 1.25)
    ] * 2


def test_a_filter_that_raises_is_told_once_and_asked_no_more(tmp_path: Path) -> None:
    told = []

    def broken(fields: dict[str, Any]) -> bool:
        raise LookupError(fields["path"])

    path = tmp_path / "access"
    options: dict[str, Any] = {"access_log_filter": broken, "log_format": "none", "access_log_format": "%s"}
    with access_log(access_log=str(path), on_record=lambda name, fields: told.append((name, fields)), **options) as log:
        assert written(log, path, entry(), entry()) == ["200", "200"]
    assert [name for name, _ in told] == ["hook.failed", "request.finished", "request.finished"]
    assert told[0][1]["hook"] == "access_log_filter"
    assert told[1][1]["status"] == 200
    assert list(told[1][1])[:5] == ["timestamp", "level", "logger", "event", "pid"]


@pytest.mark.parametrize("place", ["prefork.access", "prefork", ""])
def test_handlers_of_others_get_the_record(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = Recorder()
    logging.getLogger(place).addHandler(theirs)
    try:
        with access_log(log_format="json", alone=bool(place)) as log:
            log.take(entry(context={"request_id": "a-1"}))
            log.flush()
    finally:
        logging.getLogger(place).removeHandler(theirs)
    (record,) = theirs.records
    assert isinstance(record.msg, dict)
    assert (record.msg["status"], record.msg["request_id"], record.levelname) == (200, "a-1", "INFO")
    assert "line" not in record.msg
    assert capsys.readouterr().err == ""  # who prints it is somebody else


def test_a_handler_of_another_and_a_file_of_ours_both_have_it(tmp_path: Path) -> None:
    path, theirs = tmp_path / "access", Recorder()
    ACCESS.addHandler(theirs)
    try:
        with access_log(access_log=str(path), access_log_format="%U %s") as log:
            assert written(log, path, entry()) == ["/cups 200"]
    finally:
        ACCESS.removeHandler(theirs)
    assert len(theirs.records) == 1


def test_a_filter_on_the_logger_is_heard(tmp_path: Path) -> None:
    def no_health(record: logging.LogRecord) -> bool:
        return "/health" not in record.getMessage()

    path = tmp_path / "access"
    ACCESS.addFilter(no_health)
    try:
        with access_log(access_log=str(path), access_log_format="%U") as log:
            assert written(log, path, entry(), entry(path=b"/health")) == ["/cups"]
    finally:
        ACCESS.removeFilter(no_health)


def test_a_level_of_the_program_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "access"
    ACCESS.setLevel("WARNING")
    try:
        with access_log(access_log=str(path), access_log_format="%s") as log:
            assert written(log, path, entry(), entry(status="500")) == ["500"]
    finally:
        ACCESS.setLevel(logging.NOTSET)


def test_who_comes_later_is_found_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, theirs = tmp_path / "access", Recorder()
    now = 1000.25
    monkeypatch.setattr("prefork.records.access.time.time", lambda: now)
    with access_log(access_log=str(path), access_log_format="%s") as log:
        written(log, path, entry())
        ACCESS.addHandler(theirs)
        try:
            now = 1001.0
            written(log, path, entry())
            assert len(written(log, path, entry())) == 3
        finally:
            ACCESS.removeHandler(theirs)
    assert len(theirs.records) == 1


def test_a_logger_that_was_given_has_the_records_instead(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = Recorder()
    own = logging.getLogger("shop")
    own.setLevel("INFO")
    own.addHandler(theirs)
    records = Records(Config.of(access_log="-"), logger=own)
    log = records.access_log()
    assert log is not None
    log.take(entry())
    log.flush()
    assert [record.getMessage().partition(" ")[0] for record in theirs.records] == ["request.finished"]
    assert capsys.readouterr().err == ""


def test_what_the_application_has_bound_is_known() -> None:
    assert not bound_context()
    with structlog.contextvars.bound_contextvars(request_id="a-1"):
        assert bound_context() == {"request_id": "a-1"}


def test_the_journal_gets_priorities_and_no_second_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = (tmp_path / "journal").open("w+")
    found = os.fstat(place.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("prefork.records.outlet.STDERR", place.fileno())
    monkeypatch.setattr(sys, "stderr", place)
    with place, access_log(log_format="console") as log:
        log.take(entry())
        log.take(entry(status="500"))
        log.flush()
        logging.getLogger("prefork").warning("tea")
        place.seek(0)
        assert place.read().splitlines() == [
            '<6>192.0.2.7 "GET /cups?size=2 HTTP/1.1" 200 1234 1.2s',
            '<3>192.0.2.7 "GET /cups?size=2 HTTP/1.1" 500 1234 1.2s',
            "<4>warning tea",
        ]


def test_a_pipe_gets_whole_lines_that_it_does_not_tear_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writes: list[bytes] = []

    def write(_fd: int, data: bytes) -> int:
        writes.append(data)
        return len(data)

    monkeypatch.setattr("prefork.records.outlet.os.write", write)
    lines = ["x" * size for size in (1000, 2000, 1200, 94, 5000, 1, 1)]
    Writer("/dev/null", "json").write(lines)
    assert b"".join(writes).decode().splitlines() == lines
    assert [len(data) for data in writes] == [1001 + 2001, 1201 + 95, 5001, 4]
    assert all(len(data) <= PIPE_BUF for data in writes if len(data) != 5001)
    writes.clear()
    Writer(str(tmp_path / "file"), "json").write(lines)
    assert len(writes) == 1


def test_the_page_shows_what_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "access-log.md").read_text()
    shown = dict(re.findall(r"```(text|json|apache)\n(.*?)\n```", page, re.DOTALL))
    forms = {"text": "console", "json": "json", "apache": "combined"}
    asked = entry(
        asked_with=[(b"User-Agent", b"Mozilla/5.0"), (b"Referer", b"http://tea.example/")], duration_s=0.0125, sent=1234
    )
    monkeypatch.setattr("prefork.records.access.time.time", lambda: 1795694279.25)
    monkeypatch.setattr("prefork.records.access.os.getpid", lambda: 4711)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        for kind, form in forms.items():
            path = tmp_path / kind
            records = Records(Config.of(access_log=str(path), access_log_format=form))
            try:
                log = records.bind(role="worker", worker=3, generation=2).access_log()
                assert log is not None
                assert written(log, path, asked) == [shown[kind]]
            finally:
                records.close()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_filter_of_the_page_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "access-log.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    with access_log(access_log_filter=names["wanted"]) as log:
        assert log.prompt
    assert names["wanted"]({"status": 500, "duration_s": 0.1})
    assert names["wanted"]({"status": 200, "duration_s": 2.0})
    assert sum(names["wanted"]({"status": 200, "duration_s": 0.1}) for _ in range(1000)) < 100
