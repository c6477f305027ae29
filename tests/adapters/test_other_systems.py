"""What is left of Flask's and Django's commands where nothing can be forked, as on Windows?"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from django_project import write_project
from server_process import ROOT, LiveServer

if TYPE_CHECKING:
    from pathlib import Path

# What Python does not have there, taken away before anything of ours is imported.
WINDOWS = """
import asyncio, builtins, os, signal, socket, sys
import multiprocessing.util, subprocess, tempfile
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
del os.environb, os.fork, os.getuid, os.register_at_fork
for module, prefix in ((signal, "SIGUSR"), (signal, "SIGHUP"), (signal, "pthread_"), (socket, "AF_UNIX")):
    for name in [name for name in dir(module) if name.startswith(prefix)]:
        delattr(module, name)
really_open = builtins.open

def open(file, *rest, **more):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", file)
    return really_open(file, *rest, **more)

builtins.open = open
"""


def on_windows(folder: Path, *command: str) -> LiveServer:
    """Return a program that finds in ``folder`` what makes its interpreter look like one of Windows."""
    (folder / "sitecustomize.py").write_text(WINDOWS)
    path = os.pathsep.join([str(folder), str(ROOT)])
    return LiveServer(sys.executable, *command, cwd=folder, env={"PYTHONPATH": path}, ready="")


@pytest.mark.parametrize("command", [("--help",), ("routes",), ("run-prefork", "--help")], ids=" ".join)
def test_the_commands_of_flask_work_where_nothing_can_be_forked(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\n")
    with on_windows(tmp_path, "-m", "flask", *command) as server:
        assert server.wait() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("command", [("check",), ("migrate",), ("help", "runprefork")], ids=" ".join)
def test_the_commands_of_django_work_where_nothing_can_be_forked(tmp_path: Path, command: tuple[str, ...]) -> None:
    with on_windows(write_project(tmp_path), "manage.py", *command) as server:
        assert server.wait() == 0
        assert "Traceback" not in server.log
        assert ("prefork.W010" in server.log) == (command[0] != "help")


@pytest.mark.parametrize(
    "command", [("-m", "flask", "run-prefork"), ("manage.py", "runprefork"), ("-m", "prefork", "app:app")], ids=" ".join
)
def test_a_server_is_refused_in_one_line_where_nothing_can_be_forked(tmp_path: Path, command: tuple[str, ...]) -> None:
    with on_windows(write_project(tmp_path), *command) as server:
        assert server.wait() == 2
        assert "this system cannot fork: prefork runs on Linux and macOS [PF407]" in server.log
        assert "Traceback" not in server.log
