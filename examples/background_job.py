"""Work that goes on after the answer: prefork background_job:app --app-dir examples

A worker that retires, because its requests are used up or the server stops, waits until its exit guard is free. So
the job is finished, although the one who asked for it has had his answer long ago.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prefork import ExitGuard


def job(guard: ExitGuard) -> None:
    try:
        time.sleep(1)  # send a mail, resize a picture
        print("job done", flush=True)
    finally:
        guard.end()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    guard: ExitGuard = environ["prefork.exit_guard"]
    # Here and not in the thread: between the answer and the thread's first line the worker might see a free guard.
    guard.begin("job")
    threading.Thread(target=job, args=(guard,)).start()
    start_response("202 Accepted", [("Content-Type", "text/plain"), ("Content-Length", "9")])
    return [b"accepted\n"]
