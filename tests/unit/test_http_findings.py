"""Does what ``make fuzz`` has found stay mended?"""

from __future__ import annotations

import pytest
from http1_oracle import check_request


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n\r\n\r\n",
            id="a body that ends with CR before LF: the two were taken for a line end",
        ),
        pytest.param(
            b"PUT / HTTP/0.1\r\nHost: a\r\x02X: y\r\n\r\n",
            id="two faults in one head: which of them is told depends on the cut, but not on the parser",
        ),
    ],
)
def test_what_was_found_is_mended(octets: bytes) -> None:
    check_request(octets, [7, 3])
