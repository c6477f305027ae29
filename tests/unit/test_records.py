"""What do records look like, and are they those of the catalogue?"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from structlog.contextvars import bound_contextvars

from prefork.config import Config
from prefork.errors import ConfigError
from prefork.records import CATALOGUE, Records
from prefork.records.catalogue import EMITTER, FIELDS
from prefork.records.otel import rename
from prefork.records.rendering import Record, to_console, to_json

PACKAGE = Path(__file__).resolve().parents[2]
TEXTS = st.text(st.characters(), max_size=40)


def emitted() -> set[str]:
    """Return the names of all records that the code writes."""
    sources = [*PACKAGE.glob("prefork/**/*.py"), *PACKAGE.glob("contrib/**/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    return set(re.findall(r'(?:\.emit|\.record|Emit|Say)\(\s*"([a-z]+\.[a-z_]+)"', text))


def test_every_record_that_is_written_is_in_the_catalogue_and_the_other_way_round() -> None:
    assert emitted() == set(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_record_is_described_and_its_fields_too(name: str) -> None:
    spec = CATALOGUE[name]
    assert spec.help
    page = (PACKAGE / "docs" / "records.md").read_text()
    assert f"`{name}`" in page


def test_every_field_that_is_described_is_one_of_a_record_and_the_other_way_round() -> None:
    used = {
        field
        for spec in CATALOGUE.values()
        for field in (*spec.fields, *spec.optional, *(["code"] if spec.code else []))
    }
    assert used - {*EMITTER} == set(FIELDS) - {*EMITTER}


WITHOUT_CODE = {
    "request.rejected": "the client is to blame, and source names the rule that it broke",
    "request.failed": "the application raised, and its traceback says where",
    "request.finished": "what went wrong with a request has a record of its own",
}


def test_every_warning_and_error_has_a_code_or_a_reason_for_none() -> None:
    bad = {name for name, spec in CATALOGUE.items() if {spec.level, spec.worse} & {"warning", "error", "critical"}}
    coded = {name for name, spec in CATALOGUE.items() if spec.code or "code" in spec.fields}
    assert bad - coded == set(WITHOUT_CODE)


def test_the_end_of_a_worker_has_a_code_if_nobody_wanted_it() -> None:
    spec = CATALOGUE["worker.exited"]
    assert spec.code_of({"expected": True}) == ""
    assert spec.code_of({"expected": False}) == spec.code


@given(st.dictionaries(TEXTS, TEXTS | st.integers() | st.none() | st.lists(TEXTS, max_size=3), max_size=5))
def test_a_record_is_one_line_of_json_whatever_is_in_it(fields: dict[str, Any]) -> None:
    line = to_json({**fields, "event": "worker.ready", "logger": "prefork"})
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["event"] == "worker.ready"


@given(TEXTS, TEXTS, st.booleans())
def test_a_client_cannot_write_lines_or_colours_of_its_own(path: str, agent: str, colour: bool) -> None:
    record = {"event": "request.rejected", "logger": "prefork", "level": "warning", "path": path, "user_agent": agent}
    line = to_console(record, 0.0, colour=colour)
    assert "\n" not in line
    assert "\r" not in line
    assert not re.search("\x1b(?!\\[[0-9;]+m)", line)
    if not colour:
        assert "\x1b" not in line


def test_what_contains_itself_is_written_all_the_same() -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    assert json.loads(to_json({"event": "x", "circle": circle}))["event"] == "x"
    assert json.loads(to_json({"event": "x", "thing": object()}))["event"] == "x"


@pytest.mark.parametrize(
    ("event", "generation", "told"),
    [
        ("pool.ready", 1, False),
        ("pool.ready", 2, True),
        ("worker.ready", 2, False),
        ("pool.stopped", 1, True),  # which may be the last line of a service that goes on
    ],
)
def test_a_person_sees_which_pool_is_spoken_of_where_there_may_be_two(event: str, generation: int, told: bool) -> None:
    line = to_console({"event": event, "logger": "prefork", "generation": generation}, 0.0, colour=False)
    assert (f"generation={generation}" in line) is told


def test_a_plain_formatter_sees_name_and_fields() -> None:
    record = Record(event="worker.exited", level="info", worker=2, exit_code=-9, reason="a b", signal=None)
    assert str(record) == 'worker.exited worker=2 exit_code=-9 reason="a b"'


def test_opentelemetry_gets_its_own_names() -> None:
    renamed = rename(None, "", {"logger": "prefork.access", "event": "request.finished", "status": 200, "path": "/"})
    assert renamed["event"] == "prefork.request.finished"
    assert (renamed["http.response.status_code"], renamed["url.path"]) == (200, "/")
    of_a_worker = rename(None, "", {"logger": "prefork", "event": "worker.exited", "pid": 1, "child_pid": 2})
    assert (of_a_worker["process.pid"], of_a_worker["process.parent_pid"]) == (2, 1)
    assert rename(None, "", {"logger": "shop", "event": "sold"}) == {"logger": "shop", "event": "sold"}


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("bound", [{}, {"tenant": "a"}], ids=["nothing bound", "a context bound"])
def test_a_line_is_the_same_whether_others_look_at_it_or_not(style: str, bound: dict[str, str], tmp_path: Path) -> None:
    lines = []
    for seen in (False, True):
        path = tmp_path / f"{seen}.log"
        records = Records(Config(log_file=str(path), log_format=style)).bind(role="worker", worker=1)
        logger = logging.getLogger("prefork")
        if seen:
            logger.addFilter(everything)
        try:
            with bound_contextvars(**bound):
                records.emit("worker.held", holds=[{"why": "x", "age_s": 1.5, "where": "y"}], code="PF431")
                records.emit(
                    "worker.boot_failed", worker=2, child_pid=7, reason="a\nb", traceback="Traceback\nx", code="PF401"
                )
                records.emit("worker.spawned", worker=2, child_pid=7, budget=None)  # too fine to be written
                records.emit("hook.failed", hook="x", exc_info=error_of_a_view())
        finally:
            logger.removeFilter(everything)
            records.close()
        lines.append(re.sub(r"\d\d:\d\d:\d\d(\.\d+)?", "", path.read_text()))
    assert lines[0] == lines[1]
    assert lines[0].count("worker.") == 2
    assert "KeyError: 'cup'" in lines[0]


def error_of_a_view() -> Exception:
    with pytest.raises(KeyError) as caught:
        sys.modules["cup"]
    return caught.value


def test_structlog_is_imported_for_who_wants_our_records_and_before_there_are_forks() -> None:
    program = """
import logging, sys
from prefork.config import Config
from prefork.records import Records
records = Records(Config(log_format="json"))
records.emit("worker.killed", after_s=1.0)
records.emit("hook.failed", hook="x", exc_info=LookupError("no cup"))
records.prepare()
ours_alone = "structlog" in sys.modules or "asyncio" in sys.modules
logging.getLogger("prefork").addHandler(logging.StreamHandler())
records.prepare()
print(ours_alone, "structlog" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True"]
    assert "LookupError: no cup" in told.stderr


def test_a_collector_of_errors_that_listens_within_logging_hears_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    handlers = logging.Logger.callHandlers

    def hear(logger: logging.Logger, record: logging.LogRecord) -> None:  # as Sentry's integration does
        heard.append(record)
        handlers(logger, record)

    monkeypatch.setattr(logging.Logger, "callHandlers", hear)
    records = Records(Config.of(log_format="none"))
    try:
        records.emit("hook.failed", hook="x", exc_info=error_of_a_view())
    finally:
        records.close()
    (record,) = heard
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


def test_a_record_of_the_application_is_shown_with_all_that_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    records = Records(Config.of(log_format="json"))
    try:
        assert records.outlet is not None
        records.outlet.settle()
        (handler,) = logging.getLogger("prefork").handlers
        error = error_of_a_view()
        about = (type(error), error, error.__traceback__)
        shop = logging.getLogger("shop")
        handler.handle(
            shop.makeRecord("shop", logging.WARNING, "", 0, "sold %s", ("a cup",), about, extra={"price": 3})
        )
    finally:
        records.close()
    told = json.loads(capsys.readouterr().err)
    assert told.pop("exception").endswith("KeyError: 'cup'")
    assert told.pop("timestamp").endswith("Z")
    assert told == {"level": "warning", "logger": "shop", "event": "sold a cup", "price": 3, "pid": os.getpid()}


def everything(_: logging.LogRecord) -> bool:
    return True


def test_a_hook_that_raises_is_recorded_and_asked_no_more() -> None:
    asked = []

    def hook(name: str, fields: dict[str, Any]) -> None:
        asked.append(name)
        raise LookupError(name)

    records = Records(Config.of(log_format="none", on_record=hook))
    try:
        records.emit("worker.killed", after_s=1.0)
        records.emit("worker.killed", after_s=1.0)
    finally:
        records.close()
    assert asked == ["worker.killed"]


@pytest.mark.parametrize("option", ["log_file", "access_log"])
def test_a_file_that_cannot_be_opened_is_told_at_the_first_record(option: str, tmp_path: Path) -> None:
    records = Records(Config.of(**{option: str(tmp_path / "nowhere" / "log")}))
    with pytest.raises(ConfigError) as caught:
        records.emit("pool.ready", workers=1, boot_s=0.1)
    assert (caught.value.code, caught.value.exit_code) == ("PF105", 2)
    assert str(caught.value).startswith(f"{option} is '{tmp_path}/nowhere/log': No such file or directory: name a file")
    records.close()


def test_a_record_that_is_not_as_in_the_catalogue_is_told_to_a_strict_one() -> None:
    records = Records(Config.of(log_format="none"), strict=True)
    try:
        with pytest.raises(ValueError, match="not in the catalogue"):
            records.emit("worker.invented")
        with pytest.raises(ValueError, match=r"worker\.killed"):
            records.emit("worker.killed", colour="red")
    finally:
        records.close()
