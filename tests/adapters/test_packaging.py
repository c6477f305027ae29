"""Is ``contrib/`` the package ``prefork.contrib``, and never mistaken for the frameworks?"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("framework", ["flask", "django"])
def test_the_framework_is_the_installed_one(framework: str) -> None:
    file = import_module(framework).__file__
    assert file is not None
    assert "site-packages" in file


@pytest.mark.parametrize("framework", ["flask", "django"])
def test_the_adapter_is_found_under_its_public_name(framework: str) -> None:
    file = import_module(f"prefork.contrib.{framework}").__file__
    assert file is not None
    assert Path(file).resolve().parts[-3:] == ("contrib", framework, "__init__.py")


@pytest.mark.parametrize("framework", ["flask", "django"])
def test_started_inside_contrib_it_says_where_to_start_instead(framework: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {framework}"],
        cwd=ROOT / "contrib",
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "run from the repository root, not from contrib/" in done.stderr


def test_no_test_and_no_script_lies_in_contrib() -> None:
    # Either would put contrib/ on sys.path, and then `import flask` would find our folder.
    assert {path.name for path in (ROOT / "contrib").glob("*.py")} <= {"__init__.py", "serving.py"}
    assert not list((ROOT / "contrib").rglob("*test*"))


def test_flask_finds_the_command() -> None:
    (command,) = entry_points(group="flask.commands", name="run-prefork")
    assert command.value == "prefork.contrib.flask.cli:run_prefork"
