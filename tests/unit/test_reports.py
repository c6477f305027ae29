"""What does the parent understand of what workers say, and of what others do?"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from prefork.reports import MESSAGE_LIMIT, BootFailed, Leaving, Ready, Report, Retiring, decode, encode


@pytest.mark.parametrize(
    "report",
    [
        Ready(1, 0.5),
        Retiring(2, "max_memory", 75, 12),
        Retiring(2, "max_requests", 75),
        BootFailed(3, "Traceback", "x", "PF206"),
        Leaving(4, 100, 1),
    ],
)
def test_what_is_said_is_understood(report: Report) -> None:
    assert decode(encode(report)) == report


@pytest.mark.parametrize("character", ["a", "\n", "é", "\u20ac", "\U0001f600", "\udcff", "\0"])
@pytest.mark.parametrize("size", [10, 30_000, 1_000_000])
def test_what_is_said_of_an_error_fits_a_message_and_keeps_its_end(character: str, size: int) -> None:
    message = encode(BootFailed(1, character * size + "the end", character * size, "PF206"))
    assert len(message) <= MESSAGE_LIMIT
    report = decode(message)
    assert isinstance(report, BootFailed)
    assert report.traceback.endswith("the end")
    assert report.summary.startswith(character)


NO_REPORTS = [
    b"[]",
    b'["Ready", {}]',
    b'["Ready", 1]',
    b"[[], {}]",
    b"{}",
    b"1",
    b"[" * 60_000,
    b'["Ready", {"worker": [], "boot_s": 0.1}]',
    b'["Ready", {"worker": 1, "boot_s": "x"}]',
    b'["Leaving", {"worker": 1, "requests": "x", "overrun": 0}]',
    b'["Retiring", {"worker": 1, "requests": 1, "reason": {}}]',
]


@given(st.binary(max_size=60) | st.sampled_from(NO_REPORTS))
def test_what_is_no_report_is_told_apart(message: bytes) -> None:
    with pytest.raises(ValueError, match="not a report"):
        decode(message)
