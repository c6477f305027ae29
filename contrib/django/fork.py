"""What of Django must not be shared by two processes, and what becomes of it at a fork?"""

from __future__ import annotations

from typing import Any

from django.core.cache import caches
from django.db import connections

_inherited: list[Any] = []


def close_shared() -> None:
    """Close connections, their pools, and caches. In the parent before every fork: hooks run between two of them."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        # close() only gives the connection back to its pool, which is kept by the class and has threads.
        if hasattr(connection, "close_pool"):
            connection.close_pool()
    caches.close_all()


def forget_inherited() -> None:
    """Forget, in a worker, what the parent has open nevertheless.

    Not closed, since that would say goodbye in the parent's session; and kept alive, since a finalizer would close it.
    """
    for connection in connections.all(initialized_only=True):
        _inherited.append(connection)
        del connections[connection.alias]
        pools = getattr(type(connection), "_connection_pools", None)
        if pools:
            _inherited.append(dict(pools))
            pools.clear()


def close_thread() -> None:
    """Close what a request thread has of its own, before it ends."""
    connections.close_all()
    caches.close_all()
