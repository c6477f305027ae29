"""A Flask application: flask --app examples/flask_app.py run-prefork"""

from __future__ import annotations

import os

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return f"Hello from worker {request.environ.get('prefork.worker', '?')}, process {os.getpid()}\n"


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}
