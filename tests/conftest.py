"""What do all tests share?"""

from __future__ import annotations

import compileall
import gc
import multiprocessing
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from server_process import ROOT, LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A machine that has much to do is no failure; what hangs is ended by pytest's own timeout.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

CODE = """
import os, sys, time

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""


@pytest.fixture
def write_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a module with an ``app`` that answers with its process id, and more code after it; return the folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # what loads the app in this process adds the folder

    def write(more: str = "", *, name: str = "sample") -> Path:
        (tmp_path / f"{name}.py").write_text(CODE + more)
        return tmp_path

    return write


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Fail if the test leaves descriptors, threads, children or signal handlers behind in this process."""
    before = _leavings()
    yield
    gc.collect()
    assert _leavings() == before


def _leavings() -> dict[str, object]:
    handlers = {
        number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    }
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {
        "descriptors": sorted(int(path.name) for path in Path("/dev/fd").iterdir()),
        "threads": threading.active_count(),
        "children": [process.pid for process in multiprocessing.active_children()],
        "handlers": handlers,
        "wakeup": wakeup,
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "frozen": gc.get_freeze_count(),
        "directory": Path.cwd(),
    }


def pytest_configure(config: pytest.Config) -> None:
    """Compile our package, as an installer does with a wheel: where bytecode is not written each server would do so."""
    if not hasattr(config, "workerinput"):
        for package in ("prefork", "contrib"):
            compileall.compile_dir(ROOT / package, quiet=1)


LONG = (
    "test_deploys",
    "test_handover",
    "test_inherited_sockets",
    "test_django",
    "test_soak",
    "test_reload",
    "test_workers",
    "test_hostile",
    "test_conformance",
    "test_leavers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: in the end the short ones keep all processes busy (see SPREAD in the Makefile)."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked ``over_both`` with its WSGI application served as it is, and as an ASGI one."""
    if metafunc.definition.get_closest_marker("over_both"):
        metafunc.parametrize("interface", ["wsgi", "asgi"], indirect=True)


# For each test: a fixture that only the marker asks for is set up or not, as the release of pytest will have it.
@pytest.fixture(autouse=True)
def interface(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Say how the applications of a test are served (see ``as_asgi``)."""
    interface = getattr(request, "param", "wsgi")
    monkeypatch.setattr(LiveServer, "interface", interface)
    return str(interface)
