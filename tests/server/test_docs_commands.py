"""Does every command in the documentation work, as it stands there?"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import trustme
from server_process import PATIENCE, ROOT, LiveServer

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("**/*.md"))
# A command is a line that is indented by four spaces, and begins with the name of a program.
COMMAND = re.compile(
    r"^    ((?:[./\w-]+/)?(?:pip|flask|python|prefork|make|run|curl|kill|export|start_server) .*)$", re.MULTILINE
)

ELSEWHERE = {
    "pip install": "the wheel test installs each extra from the built wheel",
    "make test": "is what runs this",
    "make lint": ".ci/run calls it",
    "make coverage": ".ci/run calls it",
    "make soak": "test_soak.py runs a short form of it",
    "make fuzz": "test_fuzz.py runs a short form of it",
    "make bench": "it takes minutes, and compares with other servers",
    ".venv-bench/bin/": "the same",
    ".venv/bin/python tests/leavers.py": "test_leavers.py runs a short form of it",
    ".ci/run": "is what runs this where it counts",
    "kill -HUP": "test_the_commands_of_a_deploy_deploy runs it",
}
"""Commands that cannot be run by a test, and what does."""

HERE_INSTEAD = {
    "8080": "0",
    "0.0.0.0": "127.0.0.1",
    "--stop-delay 5": "--stop-delay 0.5",
    "--interval 5": "--interval 1",
}
"""What is written in the documentation, and what stands for it here, where a port may be taken and nobody has time."""

SHOP = """
from flask import Flask
app = Flask("shop")
app.add_url_rule("/", view_func=lambda: "shop")
wanted = bool
"""

SHOP_ASGI = """
async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"shop"})
"""


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for command in COMMAND.findall(page.read_text()):
            yield page.name, re.sub(r"\s{2,}#.*", "", command).strip()


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


HERE = [pytest.param(command, id=f"{page}: {command}") for page, command in commands() if not is_elsewhere(command)]


def test_the_documentation_has_commands() -> None:
    assert len(HERE) >= 8
    assert not [page.name for page in PAGES if re.search(r"^```(?:sh|console|bash)", page.read_text(), re.MULTILINE)]
    assert all(any(command.startswith(start) for _, command in commands()) for start in ELSEWHERE)


def write_shop(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").write_text(SHOP)
    (folder / "shop" / "wsgi.py").write_text("from shop import app as application\n")
    (folder / "shop" / "asgi.py").write_text(SHOP_ASGI)
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "shop.toml").touch()
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")


def test_the_commands_of_a_deploy_deploy(tmp_path: Path) -> None:
    write_shop(tmp_path)
    page = (ROOT / "docs" / "deploy.md").read_text()
    start, deploy, *_ = COMMAND.findall(page)
    _, *args = shlex.split(start)
    command = (sys.executable, "-m", "prefork", *args)
    with LiveServer(*command, cwd=tmp_path, env={"PREFORK_BIND": "127.0.0.1:0"}) as server:
        subprocess.run(["sh", "-c", deploy], cwd=tmp_path, check=True)
        assert server.wait_for("pool.deployed")["generation"] == 2


@pytest.mark.parametrize("command", HERE)
def test_a_command_serves(command: str, tmp_path: Path) -> None:
    write_shop(tmp_path)
    for written, here in HERE_INSTEAD.items():
        command = command.replace(written, here)
    program, *args = shlex.split(command)
    folder = ROOT / "examples" / "django_site" if program == "python" else tmp_path
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (found := shutil.which(program, path=path)) is None:
        assert "CI" not in os.environ, f"{program} is not installed"
        pytest.skip(f"{program} is not installed")
    environment = {"PATH": path, "FLASK_RUN_PORT": "0", "DEBUG": "1"}
    if program != "start_server":
        environment["PREFORK_BIND"] = "127.0.0.1:0"
    with LiveServer(found, *args, cwd=folder, env=environment) as server:
        assert httpx.get(f"{server.url}/", verify=False, timeout=PATIENCE).status_code == 200
