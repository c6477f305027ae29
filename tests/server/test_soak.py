"""Is anything lost when everything happens at once? A short form of ``make soak``."""

from __future__ import annotations

import subprocess
import sys

from server_process import ROOT


def test_deploys_recycles_and_deaths_at_random_lose_only_what_they_name() -> None:
    command = [sys.executable, str(ROOT / "tests" / "soak.py"), "--minutes", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 unexplained failures" in done.stdout
