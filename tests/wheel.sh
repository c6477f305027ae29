#!/usr/bin/env bash
# Build the sdist, the wheel from it, and use the wheel where there is no checkout: an editable install would not notice
# a package that a build leaves out.  Usage: tests/wheel.sh PYTHON (one that has `build`)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --outdir "$work/dist" "$root" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$python" -m venv "$work/venv"
wheel=$(ls "$work"/dist/*.whl)
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[flask,django]"
export PATH="$work/venv/bin:$PATH"
unset PYTHONPATH
cd "$work"

echo "wheel: $(basename "$wheel")"
prefork --help >help && grep -q -- --max-workers help && echo "ok: prefork --help"
flask --help >help 2>&1 && grep -q run-prefork help && echo "ok: flask lists run-prefork"
python - <<'END'
import django
from django.conf import settings
from django.core.management import get_commands

settings.configure(INSTALLED_APPS=["prefork.contrib.django"])
django.setup()
assert get_commands()["runprefork"] == "prefork.contrib.django"
print("ok: Django finds runprefork")
END
cp "$root/examples/wsgi_hello.py" .
python - <<'END'
from importlib.util import find_spec
from urllib.request import urlopen

import prefork

assert "site-packages" in prefork.__file__, prefork.__file__
assert find_spec("httptools") is None  # so this is also the test of an installation without extras
with prefork.WorkerPool("wsgi_hello:app", bind="127.0.0.1:0", max_workers=1, log_format="none") as pool:
    with urlopen(pool.url, timeout=10) as answer:
        assert answer.status == 200
print("ok: the wheel serves, with h11 alone")
END

"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[fast,tls,trio,websocket]"
python - <<'END'
import ssl
from importlib.util import find_spec
from urllib.request import urlopen

import prefork

assert all(map(find_spec, ["cryptography", "httptools", "trio", "uvloop", "wsproto"]))
with prefork.WorkerPool("wsgi_hello:app", bind="127.0.0.1:0", cert="adhoc", max_workers=1, log_format="none") as pool:
    with urlopen(pool.url, timeout=10, context=ssl._create_unverified_context()) as answer:
        assert answer.status == 200
print("ok: the wheel serves with all extras")
END
