"""What does a line of the access log say? One request is one line, whatever a client sent."""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime
from typing import Any

import pytest
from access_entries import entry
from hypothesis import given, strategies as st

from prefork.access_format import FIELDS, FORMATS, Entry, compile_format, json_form, record_of
from prefork.config import Config
from prefork.errors import ConfigError

NOW = 1_795_693_479.25
WRITER = {"pid": 4711, "role": "worker", "worker": 3, "generation": 2}
GUNICORN = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
PLAIN = re.compile(r"[ -~]*")
OCTETS = st.binary(max_size=20)
ANY = st.text(st.characters(), max_size=20)  # with lone surrogates
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|(.))")


def line(text: str, *args: Any, **more: Any) -> str:
    (made,) = compile_format(text, WRITER)([entry(*args, **more)], NOW)
    return made


def unescaped(text: str) -> str:
    known = {"n": "\n", "r": "\r", "t": "\t"}
    return ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else known.get(found[2], found[2]), text)


def described(path: bytes, query: bytes, agent: bytes, referer: bytes, client: str, bound: dict[str, Any]) -> Entry:
    fields = [(b"User-Agent", agent), (b"REFERER", referer)]
    return entry(path=path, query=query, asked_with=fields, client=client, context=bound)


BOUND = st.dictionaries(ANY, ANY | st.integers() | st.none(), max_size=2)
ASKED = st.builds(described, OCTETS, OCTETS, OCTETS, OCTETS, ANY, BOUND)


def sent(asked: Entry, name: bytes) -> bytes:
    return dict(asked.request.head.fields)[name]


@given(ASKED)
def test_json_is_one_line_that_says_what_the_record_says(asked: Entry) -> None:
    (text,) = json_form(WRITER, with_id=False)([asked], NOW)
    assert PLAIN.fullmatch(text)
    said = json.loads(text)
    assert list(said)[:4] == ["timestamp", "level", "logger", "event"]
    assert said["timestamp"] == "2026-11-26T11:44:39.250000Z"
    about = {"level": "info", "logger": "prefork.access", "event": "request.finished", **WRITER}
    bound = {name: value for name, value in asked.context.items() if name not in {*about, "timestamp"}}
    assert said == {"timestamp": said["timestamp"], **bound, **record_of(asked, with_id=False), **about}
    assert said["path"].encode("latin-1") == asked.request.line.path
    assert said["user_agent"].encode("latin-1") == sent(asked, b"User-Agent")
    assert said["client"] == asked.client


@given(ASKED)
def test_a_line_of_apache_can_be_taken_apart_again(asked: Entry) -> None:
    text = compile_format(FORMATS["combined"])([asked], NOW)[0]
    assert PLAIN.fullmatch(text)
    quoted = r'"((?:[^"\\]|\\.)*)"'
    found = re.fullmatch(rf"(.*) - - \[(.*?)\] {quoted} 200 1234 {quoted} {quoted}", text)
    assert found is not None, text
    assert unescaped(found[3]).encode("latin-1") == asked.request.line.octets
    assert unescaped(found[4]).encode("latin-1") == (sent(asked, b"REFERER") or b"-")
    assert unescaped(found[5]).encode("latin-1") == (sent(asked, b"User-Agent") or b"-")
    if asked.client and max(asked.client) <= "\xff":
        assert unescaped(found[1]) == asked.client


@given(ANY, ANY, OCTETS)
def test_what_an_application_or_a_name_holds_begins_no_line_and_no_column(value: str, name: str, user: bytes) -> None:
    token = base64.b64encode(user.replace(b":", b"")).decode()
    environ = {"SHOP": value, "HTTP_AUTHORIZATION": f"Basic {token}"}
    text = line("%u|%{SHOP}e|%{X-Cup}o|%(request_id)s", environ=environ, fields=[("x-cup", value)], request_id=name)
    assert PLAIN.fullmatch(text)
    assert " " not in text.partition("|")[0]


@given(ANY)
def test_what_the_user_writes_between_atoms_stands_there(text: str) -> None:
    text = text.replace("\\", "/").replace("\n", " ").replace("\r", " ")
    assert line(text.replace("%", "%%") + "%m" + text.replace("%", "%%")) == f"{text}GET{text}"


@given(st.text(st.characters(exclude_characters="{}()"), min_size=1, max_size=10), ANY)
def test_any_name_is_looked_up_and_nothing_else(name: str, value: str) -> None:
    environ = {name: value}
    assert line(f"%{{{name}}}e", environ=environ) == line(f"%({{{name}}}e)s", environ=environ)
    if value and max(value) <= "\xff":
        assert unescaped(line(f"%{{{name}}}e", environ=environ)) == value
    assert line(f"%{{{name}}}i%{{{name}}}o", fields=()) == "--"


@pytest.mark.parametrize(
    "asked", [entry(), entry(sent=0), entry(asked_with=[(b"user-agent", b'a "b"'), (b"referer", b"/")])]
)
def test_gunicorns_own_format_and_apaches_say_the_same(asked: Entry) -> None:
    assert compile_format(GUNICORN)([asked], NOW) == compile_format("combined")([asked], NOW)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("%h %a %l", "192.0.2.7 192.0.2.7 -"),
        ("%m %U%q %H", "GET /cups?size=2 HTTP/1.1"),
        ("%(m)s %(U)s %(q)s %(H)s", "GET /cups size=2 HTTP/1.1"),
        ("%r", "GET /cups?size=2 HTTP/1.1"),
        ("%s %>s %<s %(s)s", "200 200 200 200"),
        ("%b %B %(b)s %(B)d", "1234 1234 1234 1234"),
        ("%D %T %{ms}T %{us}T %{s}T", "1250000 1 1250 1250000 1"),
        ("%(D)d %(M)s %(L)s %(T)s", "1250000 1250 1.250000 1"),
        ("%P %(p)s", "4711 <4711>"),
        ("%v %V %p", "tea.example tea.example -"),
        ("%X %L", "+ -"),
        ("%{Host}i %{X-None}i %({Host}i)s", "tea.example:8000 - tea.example:8000"),
        ("%{Content-Type}o %({content-type}o)s %{X-None}o", "text/plain text/plain -"),
        ("%{sec}t %{msec}t %{usec_frac}t %{end:msec_frac}t %{end:usec}t", "1795693478 1795693478000 000000 250 1795693479250000"),
        ("%(method)s %(path)s %(query)s %(http_version)s", "GET /cups size=2 1.1"),
        ("%(status)s %(duration_s)s %(queue_s)s %(outcome)s", "200 1.250000 0.004 complete"),
        ("%(request_bytes)s %(response_bytes)s %(client)s %(scheme)s %(host)s", "5 1234 192.0.2.7 http tea.example:8000"),
        ("%(user_agent)s %(referer)s %(request_id)s", "- - -"),
        ("%(worker)s %(generation)s %(pid)s", "3 2 4711"),
        (r"100 %% \"%h\" {x} \t|", '100 % "192.0.2.7" {x} \t|'),
        ("%h\nx", r"192.0.2.7\nx"),
    ],
)  # fmt: skip
def test_an_atom_stands_for_its_value(text: str, shown: str) -> None:
    assert line(text) == shown


@pytest.mark.parametrize(
    ("text", "more", "shown"),
    [
        ("%b %B", {"sent": 0}, "- 0"),
        ("%U%q", {"query": b""}, "/cups"),
        ("%X", {"closes": True}, "-"),
        ("%X", {"outcome": "client_gone"}, "X"),
        ("%(queue_s)s", {"queue_s": None}, "-"),
        ("%L %{X-Request-ID}o", {"request_id": "a-1"}, "a-1 a-1"),
        ("%u", {"environ": {"REMOTE_USER": "jo ann"}}, r"jo\x20ann"),
        ("%u", {"environ": {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"jo:tea").decode()}}, "jo"),
        ("%u", {"environ": {"HTTP_AUTHORIZATION": "Basic tea"}}, "-"),
        ("%u", {"environ": {"HTTP_AUTHORIZATION": "Bearer tea"}}, "-"),
        ("%p %{wsgi.version}e", {"environ": {"SERVER_PORT": "80", "wsgi.version": (1, 0)}}, "80 (1, 0)"),
        ("%{X-A}i", {"asked_with": [(b"X-A", b"1"), (b"x-a", b"2")]}, "1, 2"),
    ],
)
def test_an_atom_shows_what_is_not_there(text: str, more: dict[str, Any], shown: str) -> None:
    assert line(text, **more) == shown


def test_the_time_of_a_request_is_when_it_began() -> None:
    began = datetime.strptime(line("%t"), "[%d/%b/%Y:%H:%M:%S %z]")
    assert began.timestamp() == int(NOW - 1.25)
    assert line("%t") == line("%(t)s") == line("%{begin:}t") == f"[{line('%{%d/%b/%Y:%H:%M:%S %z}t')}]"
    assert line("%{end:%s}t") == str(int(NOW))


def test_forms_that_share_a_request_do_not_mix() -> None:
    asked = entry(asked_with=[(b"Referer", b"/a"), (b"User-Agent", b"b")])
    first, second = compile_format("%m %{Referer}i"), compile_format("%U %{User-Agent}i %m")
    for _ in range(2):
        assert first([asked, asked], NOW) == ["GET /a"] * 2
        assert second([asked], NOW) == ["/cups b GET"]


def test_a_failure_is_an_error() -> None:
    form = json_form(WRITER, with_id=True)
    levels = [json.loads(text)["level"] for text in form([entry(status="499"), entry(status="500")], NOW)]
    assert levels == ["info", "error"]
    assert json.loads(form([entry(request_id="a-1", context={"request_id": "b"})], NOW)[0])["request_id"] == "a-1"


def test_the_record_has_the_fields_in_their_order() -> None:
    assert list(record_of(entry(), with_id=True)) == list(FIELDS)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("%(h)s %(statuss)s", "did you mean %(status)s?"),
        ("%(S)s", "did you mean %(s)s?"),
        ("%R", "did you mean %r?"),
        ("%{min}T", "did you mean %T?"),
        ("%{Foo}C", "docs/access-log.md"),
        ("%(h", "docs/access-log.md"),
        ("%404s", "docs/access-log.md"),
        ("50% of", "docs/access-log.md"),
    ],
)
def test_what_stands_for_nothing_is_told_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(access_log_format=text)
    assert caught.value.code == "PF102"
    assert near in str(caught.value)


@pytest.mark.parametrize("text", ["apache", "", "Combined Log"])
def test_what_is_no_format_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Config(access_log_format=text)


@pytest.mark.parametrize("text", ["json", "Console", "common", "COMBINED", "%h", GUNICORN])
def test_a_format_is_named_or_written(text: str) -> None:
    kept = Config(access_log_format=text).access_log_format
    assert kept == (text if "%" in text else text.lower())
