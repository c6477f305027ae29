"""What does an application see and answer, whatever the system offers?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server_process import LiveServer, Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WITHOUT_EPOLL = """
import select
del select.epoll
"""


def test_a_system_without_epoll_serves_too(write_app: Callable[..., Path]) -> None:
    folder = str(write_app(WITHOUT_EPOLL))
    with LiveServer.pool("sample:app", app_dir=folder, max_workers=1, max_reqs_per_child=0) as server:
        with Tally(server) as kept, Tally(server, keep_alive=False) as fresh:
            kept.wait_for(100)
            fresh.wait_for(100)
        assert kept.lost == fresh.lost == []
        assert not server.all("worker.exited")
