# Does what we would publish work? Builds sdist and wheel, and installs the wheel alone into a clean environment.
# usage: sh tests/wheel.sh PYTHON
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$1" -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$1" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$(ls "$work"/dist/*.whl)[flask,django]"
cd "$work"
"$work/venv/bin/python" -c "import prefork.contrib.flask, prefork.contrib.django, prefork.pool"
"$work/venv/bin/prefork" --version
"$work/venv/bin/flask" --help | grep run-prefork
"$work/venv/bin/python" -c "
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=['prefork.contrib.django'])
django.setup()
from django.core.management import get_commands
assert get_commands()['runprefork'] == 'prefork.contrib.django'
"
echo "the wheel works"
