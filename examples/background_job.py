"""Answer now, work on: the exit guard keeps the worker until the job is done."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    guard = environ["prefork.exit_guard"]
    guard.begin()

    def job() -> None:
        try:
            time.sleep(1)
        finally:
            guard.end()

    threading.Thread(target=job).start()
    start_response("202 Accepted", [("Content-Type", "text/plain"), ("Content-Length", "9")])
    return [b"accepted\n"]
