"""Does the server hold to RFC 9110 and 9112, whichever parser reads? See tests/conformance/README.md."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KIT = Path(__file__).resolve().parent.parent / "conformance"


@pytest.mark.parametrize(
    ("parser", "app", "flags"),
    [
        ("h11", "wsgi_app:app", ""),
        ("httptools", "wsgi_app:app", ""),
        ("h11", "wsgi_app:checked", ""),
        ("httptools", "wsgi_app:checked", ""),
        ("h11", "asgi_app:app", "--async-backend trio"),
        ("httptools", "asgi_app:app", "--async-backend uvloop"),
    ],
)
def test_every_exchange_is_judged_as_the_rfc_demands(parser: str, app: str, flags: str, tmp_path: Path) -> None:
    assert shutil.which("curl") or "CI" not in os.environ, "in CI the kit's checks with curl must not be left out"
    out, log = tmp_path / "results.json", tmp_path / "log"
    prefork = [sys.executable, "-m", "prefork", app, "--http", parser, "--bind", "127.0.0.1:{port}", *flags.split()]
    # No recycling: a worker that retires may close after any answer, and some cases count what one connection gets.
    prefork += ["--max-reqs-per-child", "0", "--max-workers", "2"]
    replay = [sys.executable, str(KIT / "replay.py"), "--command", shlex.join(prefork)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
    done = subprocess.run(
        [*replay, "--json", str(out), "--log", str(log)], env=clean, capture_output=True, text=True, check=False
    )
    assert out.exists(), f"{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"
    results = json.loads(out.read_text())
    assert len(results) > 506  # a case less is a promise less
    failed = [f"{row['id']}: {row['problem']} {row['got']}" for row in results if row["problem"]]
    assert not failed, "\n".join(failed)
    assert done.returncode == 0, done.stdout + done.stderr
