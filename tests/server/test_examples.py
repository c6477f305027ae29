"""Does what we show to others work?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import LiveServer

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
FLASK = (sys.executable, "-m", "flask", "--app", str(EXAMPLES / "flask_app.py"), "run-prefork", "--port", "0")
DJANGO = (sys.executable, str(EXAMPLES / "django_site" / "manage.py"), "runprefork", "127.0.0.1:0")


def test_plain_wsgi_example_is_served() -> None:
    with LiveServer.of("wsgi_hello", "--app-dir", str(EXAMPLES)) as server:
        assert server.get("/")[1].startswith(b"Hello from worker ")


def test_flask_example_is_served() -> None:
    with LiveServer(*FLASK) as server:
        assert json.loads(server.get("/health")[1]) == {"status": "ok"}


def test_django_example_is_served() -> None:
    with LiveServer(*DJANGO) as server:
        assert server.get("/")[1].startswith(b"Hello from worker ")


def test_background_job_is_finished_although_the_server_stops() -> None:
    with LiveServer.of("background_job", "--app-dir", str(EXAMPLES)) as server:
        assert server.get("/") == (202, b"accepted\n")
    assert "job done" in server.output


@pytest.mark.parametrize("command", [FLASK, DJANGO], ids=["Flask", "Django"])
def test_the_job_of_a_view_is_finished_although_the_server_stops(command: tuple[str, ...]) -> None:
    with LiveServer(*command, env={"DEBUG": "0"}) as server:
        assert server.get("/job") == (202, b"accepted\n")
    assert "job done" in server.output


def test_the_example_of_a_background_job_may_be_warmed_up() -> None:
    with LiveServer.of("background_job", "--app-dir", str(EXAMPLES), "--warm-up", "/") as server:
        assert server.get("/") == (202, b"accepted\n")


def test_a_delayed_answer_comes_and_the_job_behind_it_is_finished() -> None:
    with LiveServer.of("asgi_delayed:app", "--app-dir", str(EXAMPLES), "-w", "1") as server:
        assert server.get("/") == (200, b"delayed\n")
    assert "job done" in server.output


def test_embedded_example_serves_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "embedded.py")], capture_output=True, text=True, check=True, timeout=30
    )
    assert "it says Hello" in done.stdout
