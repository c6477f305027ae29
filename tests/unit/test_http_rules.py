"""Does the page ``docs/http.md`` say what is done? Each of its rows, with both parsers."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from http1_oracle import DATE, PARSERS, Maker, Transcript, cut, listen
from http_rules import ANSWERS, RULES, Answered, Refusal, Served

from prefork.config import Limits
from prefork.http1.connection import Connection, Phase
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Misanswered, Request

ROWS = list(chain.from_iterable(RULES.values()))
REFUSALS = [pytest.param(row, id=f"{row.source}: {row.what}") for row in ROWS if isinstance(row, Refusal)]
SERVED = [pytest.param(row, id=f"{row.source}: {row.what}") for row in ROWS if isinstance(row, Served)]
ANSWERED = [pytest.param(row, id=f"{row.source}: {row.what}") for row in ANSWERS]
OCTET_BY_OCTET = 2000

pytestmark = pytest.mark.parametrize("parser", PARSERS)


def heard(parser: Maker, octets: bytes) -> list[Transcript]:
    """Return what two connections tell: one that had all at once, one that had it octet by octet if it is short."""
    ways = [[octets]] if len(octets) > OCTET_BY_OCTET else [[octets], cut(octets, [1])]
    return [listen(HeadReader(Limits(), parser()), pieces) for pieces in ways]


@pytest.mark.parametrize("row", REFUSALS)
def test_what_the_page_says_is_refused_is_refused_so(parser: Maker, row: Refusal) -> None:
    for seen in heard(parser, row.octets):
        assert seen.refused is not None
        assert (seen.refused.status, seen.refused.reason, seen.refused.source) == (row.status, row.reason, row.source)
        assert not [told for told in seen.requests if told.whole]
        assert seen.closed


@pytest.mark.parametrize("row", SERVED)
def test_what_the_page_says_is_served_is_served_so(parser: Maker, row: Served) -> None:
    for seen in heard(parser, row.octets):
        assert seen.refused is None
        told = seen.requests[0]
        facts: dict[str, Any] = {"names": [name for name, _ in told.fields], "requests": len(seen.requests)}
        assert {name: facts.get(name, getattr(told, name, None)) for name in row.facts} == row.facts


@pytest.mark.parametrize("row", ANSWERED)
def test_an_answer_goes_out_as_the_page_says(parser: Maker, row: Answered) -> None:
    made = Connection(HeadReader(Limits(), parser()))
    made.receive(row.asked)
    assert isinstance(made.next_event(), Request)

    def answer() -> bytes:
        if len(row.pieces) == 1:
            return made.whole(row.status, row.fields, DATE, row.pieces[0])
        return made.start(row.status, row.fields, DATE) + b"".join(map(made.data, row.pieces)) + made.finish()

    if row.wrong:
        with pytest.raises(Misanswered, match=row.wrong):
            answer()
        return
    octets = answer()
    assert not [part for part in row.present if part not in octets]
    assert not [part for part in row.absent if part in octets]
    assert (made.phase is Phase.CLOSED) == row.closes
