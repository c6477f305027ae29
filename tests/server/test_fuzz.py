"""Does ``make fuzz`` look, and would it tell? A short form of it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from server_process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FUZZ = [sys.executable, str(ROOT / "tests" / "fuzz.py")]


def test_properties_are_asked_for_as_long_as_is_wanted() -> None:
    done = subprocess.run(
        [*FUZZ, "--engine", "hypothesis", "--seconds", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "properties held" in done.stdout


def test_a_file_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "request"
    file.write_bytes(b"\x0c\x02GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert subprocess.run([*FUZZ, str(file)], check=False).returncode == 0
