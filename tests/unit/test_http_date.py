"""Is the value of Date what RFC 9110 asks for?"""

from __future__ import annotations

from email.utils import formatdate

from hypothesis import given, strategies as st

from prefork.reception import http_date


@given(st.integers(0, 4102444800))
def test_a_date_is_an_imf_fixdate(now: int) -> None:
    assert http_date(now) == formatdate(now, usegmt=True).encode()
