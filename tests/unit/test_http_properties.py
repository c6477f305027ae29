"""What holds of a connection, whatever it is sent and whatever an application answers? With both parsers.

``make fuzz`` asks the same for longer.
"""

from __future__ import annotations

from http1_oracle import check_answer, check_request
from hypothesis import given, strategies as st


@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_any_octets_however_cut_are_judged_alike_and_mean_the_same_when_written_again(
    data: bytes, sizes: list[int]
) -> None:
    check_request(data, sizes)


REQUESTS = st.lists(
    st.sampled_from(
        [
            *(b"GET / HTTP/1.1\r\n", b"POST /?a HTTP/1.1\r\n", b"HEAD http://b/ HTTP/1.0\r\n", b"Host: a\r\n", b"X_Y: z\r\n"),
            *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
            *(b"\r\n", b"\n", b"\r", b"0\r\n", b"3\r\nabc\r\n", b"3;a=b\r\n", b"abc", b"T: u\r\n", b" ", b":", b"\0"),
        ]
    )
    | st.binary(max_size=3),
    max_size=14,
).map(b"".join)  # fmt: skip


@given(data=REQUESTS, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_parts_of_requests_however_joined_and_cut_are_judged_alike(data: bytes, sizes: list[int]) -> None:
    check_request(data, sizes)


STATUSES = st.sampled_from(["200 OK", "204 No Content", "205 x", "304 x", "404", "103 x", "999 x", "20 0", "200 a\rb"])
FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["Content-Length", "content-length", "Transfer-Encoding", "Connection", "Date", "Server", "X"])
        | st.text(max_size=4),
        st.sampled_from(["0", "3", "5", "close", "chunked", "", "a\r\nX: b"]) | st.text(max_size=6),
    ),
    max_size=4,
)


@given(
    asked=st.sampled_from([b"GET / HTTP/1.1", b"HEAD / HTTP/1.1", b"GET / HTTP/1.0"]),
    status=STATUSES | st.text(max_size=6),
    fields=FIELDS,
    pieces=st.lists(st.binary(max_size=5), max_size=3),
)
def test_an_answer_is_well_framed_or_nothing_of_it_goes_out(
    asked: bytes, status: str, fields: list[tuple[str, str]], pieces: list[bytes]
) -> None:
    check_answer(asked + b"\r\nHost: a\r\n\r\n", status, fields, pieces)
