"""The smallest Flask application: `flask --app examples/flask_app.py run-prefork`."""

from __future__ import annotations

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return f"Hello from worker {request.environ.get('prefork.worker', '?')}\n"
