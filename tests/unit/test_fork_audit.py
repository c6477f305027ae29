"""What is found in a process that would not survive a fork, or be shared by it, and what is left alone?"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from asgiref.sync import SyncToAsync

from prefork.fork_audit import Finding, audit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is put there when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def found() -> Callable[[], list[Finding]]:
    """Return what the test has added to what there was."""
    before = audit()
    return lambda: [finding for finding in audit() if finding not in before]


def connect(stack: ExitStack, address: str | tuple[str, int]) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    server = stack.enter_context(socket.socket(family))
    server.bind(address)
    server.listen()
    client = stack.enter_context(socket.socket(family))
    client.connect(server.getsockname())
    stack.enter_context(server.accept()[0])
    return client


def start(stack: ExitStack, thread: threading.Thread, done: threading.Event) -> None:
    thread.start()
    stack.callback(thread.join)
    stack.callback(done.set)


class Exporter(threading.Thread):
    def __init__(self, done: threading.Event) -> None:
        super().__init__(name="exporter")
        self.done = done

    def run(self) -> None:
        self.done.wait()


def work(done: threading.Event) -> None:
    done.wait()


def test_a_clean_process_has_nothing_to_put_right(found: Callable[[], list[Finding]]) -> None:
    assert found() == []


@pytest.mark.parametrize("kind", ["function", "partial", "subclass"])
def test_a_thread_is_named_with_what_it_runs_and_where_that_is_written(
    kind: str, found: Callable[[], list[Finding]], stack: ExitStack
) -> None:
    done = threading.Event()
    thread = {
        "function": threading.Thread(target=work, args=(done,), name="exporter"),
        "partial": threading.Thread(target=functools.partial(work, done), name="exporter"),
        "subclass": Exporter(done),
    }[kind]
    start(stack, thread, done)
    (finding,) = found()
    assert (finding.kind, finding.what) == ("thread", "exporter")
    assert ("Exporter.run" if kind == "subclass" else "work") in finding.where
    assert f"({__file__}:" in finding.where
    assert "worker_started" in finding.remedy


def test_an_executor_is_named_once_with_its_place_and_its_threads(
    found: Callable[[], list[Finding]], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="mailer"))
    assert found() == []  # unused: it has no threads
    executor.submit(int).result()
    monkeypatch.setattr(sys.modules[__name__], "mailer", executor, raising=False)
    (finding,) = found()
    assert (finding.kind, finding.what) == ("executor", "mailer_0")
    assert finding.where == f"{__name__}.mailer"
    assert "submit() would wait for ever" in finding.remedy


def test_an_executor_without_a_name_is_found_too(found: Callable[[], list[Finding]], stack: ExitStack) -> None:
    held = [stack.enter_context(ThreadPoolExecutor(1))]
    held[0].submit(int).result()
    (finding,) = found()
    assert "known by no name" in finding.where


class Lazy:
    """Is set up when it is asked for its class, as a lazy object of Django's."""

    def __getattribute__(self, name: str) -> object:
        raise LookupError(f"it was set up for its {name}")


def test_what_is_lazy_is_not_set_up_by_a_look_at_it(
    found: Callable[[], list[Finding]], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = stack.enter_context(ThreadPoolExecutor(1))
    executor.submit(int).result()
    monkeypatch.setattr(sys.modules[__name__], "lazy", Lazy(), raising=False)
    (finding,) = found()
    assert finding.kind == "executor"


def test_the_executor_of_asgiref_comes_with_a_remedy_of_its_own(
    found: Callable[[], list[Finding]], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = stack.enter_context(ThreadPoolExecutor(1))
    monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)
    executor.submit(int).result()
    (finding,) = found()
    assert finding.where == "asgiref.sync.SyncToAsync.single_thread_executor"
    assert "sync_to_async" in finding.remedy


def test_a_connection_is_named_with_its_peer(
    found: Callable[[], list[Finding]], stack: ExitStack, tmp_path: Path
) -> None:
    client = connect(stack, ("127.0.0.1", 0))
    host, port = client.getpeername()
    ours = [finding for finding in found() if finding.what == f"connection to {host}:{port}"]
    assert [finding.where for finding in ours] == [
        f"descriptor {client.fileno()}, from {host}:{client.getsockname()[1]}"
    ]
    assert "before_fork" in ours[0].remedy
    connect(stack, str(tmp_path / "s"))
    assert f"connection to {tmp_path / 's'}" in [finding.what for finding in found()]


def test_what_may_be_shared_is_left_alone(found: Callable[[], list[Finding]], stack: ExitStack) -> None:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    for end in socket.socketpair():
        stack.enter_context(end)
    datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    datagrams.connect(server.getsockname())
    stack.enter_context(socket.socket())
    for descriptor in os.pipe():
        stack.callback(os.close, descriptor)
    assert found() == []


def test_an_event_loop_that_runs_is_found() -> None:
    async def look() -> list[Finding]:
        return [finding for finding in audit() if finding.kind == "event_loop"]

    (finding,) = asyncio.run(look())
    assert finding.what.startswith("asyncio.")
    assert "outside of coroutines" in finding.remedy
    assert not [finding for finding in audit() if finding.kind == "event_loop"]


def test_a_loop_of_trio_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio", SimpleNamespace(lowlevel=SimpleNamespace(in_trio_run=lambda: True)))
    assert "trio" in [finding.what for finding in audit() if finding.kind == "event_loop"]
