"""Which descriptors are ready, whatever the system offers?"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from prefork.errors import PlatformUnsupported
from prefork.poller import READ, WRITE, EpollPoller, PollPoller, new_poller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.poller import Poller

KINDS = [EpollPoller, PollPoller] if hasattr(select, "epoll") else [PollPoller]


@pytest.fixture(params=KINDS)
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    poller: Poller = request.param()
    yield poller
    poller.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_descriptor_is_told_of_for_what_it_is_watched_for(
    poller: Poller, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    poller.register(ours.fileno(), READ)
    assert poller.poll(0) == []
    theirs.send(b".")
    assert poller.poll(None) == [(ours.fileno(), READ)]
    poller.modify(ours.fileno(), WRITE)
    assert poller.poll(None) == [(ours.fileno(), WRITE)]
    poller.unregister(ours.fileno())
    assert poller.poll(0) == []


def test_a_shared_descriptor_is_told_of_too(poller: Poller, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    poller.register(ours.fileno(), READ, shared=True)
    theirs.send(b".")
    assert poller.poll(None) == [(ours.fileno(), READ)]


def test_what_is_closed_after_it_was_forgotten_is_told_of_no_more(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        poller.register(ours.fileno(), READ | WRITE)
        poller.forget(ours.fileno())
        poller.forget(ours.fileno())  # whoever closes need not know whether it is watched
        ours.close()
        assert poller.poll(0) == []


def test_what_another_thread_watches_wakes_who_waits(poller: Poller, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.send(b".")
    told: list[tuple[int, int]] = []

    def wait() -> None:
        while not told:
            told.extend(poller.poll(None))

    waiting = threading.Thread(target=wait)
    waiting.start()
    threading.Event().wait(0.1)
    poller.register(ours.fileno(), READ)
    waiting.join(10)
    assert told == [(ours.fileno(), READ)]


def test_without_epoll_there_is_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    with closing(new_poller()) as poller:
        assert isinstance(poller, PollPoller)


def test_an_event_loop_is_not_served_where_there_is_no_epoll() -> None:
    with closing(PollPoller()) as poller, pytest.raises(PlatformUnsupported, match=r"serve them on Linux \[PF442\]"):
        poller.fileno()
