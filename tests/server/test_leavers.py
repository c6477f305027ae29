"""Is anything left of clients that stall or leave, at whatever stage? A short form of ``python tests/leavers.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from leavers import grown, served, visits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("backend", ["uvloop", "trio", "uvloop over TLS"])
def test_nothing_is_kept_of_who_stalls_or_leaves(tmp_path: Path, backend: str) -> None:
    name, _, tls = backend.partition(" ")
    with served(tmp_path, name, tls=bool(tls)) as server:
        left = {
            what: more for what, before, after in visits(server, 20, at_once=True) if (more := grown(before, after))
        }
        assert not left
        assert not server.all("worker.exited")
