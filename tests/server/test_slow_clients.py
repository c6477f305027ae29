"""What may a client cost that sends or takes more than there is room for?"""

from __future__ import annotations

import socket
from http.client import HTTPResponse
from typing import TYPE_CHECKING

from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import resource
# Python ignores SIGXFSZ, so a write beyond it fails as on a full disk.
def limited(worker):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""


def test_a_body_whose_last_bytes_find_the_disk_full_is_answered_too(write_app: Callable[..., Path]) -> None:
    """These few bytes fit into Python's buffer, so that nothing fails before the body is read."""
    folder = str(write_app(APP))
    with LiveServer.pool(
        "sample:app", app_dir=folder, worker_started="sample:limited", max_workers=1, max_reqs_per_child=0
    ) as server:
        size = 1_000_100
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            client.sendall(b"x" * size)
            response = HTTPResponse(client)
            response.begin()
            assert response.status == 507
        assert server.get()[0] == 200
        assert not server.all("worker.exited")
        server.stop()
        (refused,) = server.all("request.rejected")
        assert "no room for the body" in refused["reason"]
