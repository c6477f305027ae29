"""A Flask application: flask --app examples/flask_app.py run-prefork"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from flask import Flask, request

if TYPE_CHECKING:
    from prefork import ExitGuard

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return f"Hello from worker {request.environ.get('prefork.worker', '?')}, process {os.getpid()}\n"


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/job")
def job() -> tuple[str, int]:
    """Answer now, and work on: the worker goes when the job is done, also if it is replaced or the server stops."""
    guard: ExitGuard = request.environ["prefork.exit_guard"]
    guard.begin("job")  # here and not in the thread: the worker might see a free guard between the two
    threading.Thread(target=work, args=(guard,)).start()
    return "accepted\n", 202


def work(guard: ExitGuard) -> None:
    try:
        time.sleep(1)  # send a mail, resize a picture
        print("job done", flush=True)
    finally:
        guard.end()
