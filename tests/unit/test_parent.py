"""What does an order mean to the parent of a pool?"""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from prefork import origin
from prefork.errors import AppFailed
from prefork.parent import Parent
from prefork.scoreboard import Row
from prefork.supervisor import Superseded
from prefork.vitals import Vitals


@pytest.mark.parametrize(
    ("mark", "events"),
    [({}, [Superseded(None)]), ({"served": True}, [])],
    ids=["it does not serve", "it serves"],
)
def test_a_pool_that_is_given_up_goes_unless_it_has_said_that_it_serves(
    mark: dict[str, Any], events: list[Superseded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "mark", mark)
    parent: Any = SimpleNamespace(generation=2)
    assert Parent.heed(parent, "superseded", new_generation=2) == events
    assert Parent.heed(parent, "superseded", new_generation=3) == [Superseded(3)]


@pytest.mark.parametrize("error", [AppFailed("PF320", "it failed", "mend it"), OSError("too many open files")])
def test_a_certificate_that_cannot_be_read_anew_leaves_the_old_one(error: Exception) -> None:
    told: list[dict[str, Any]] = []

    def refuse() -> None:
        raise error

    parent: Any = SimpleNamespace(tls="old", new_context=refuse, record=lambda _name, **fields: told.append(fields))
    assert not Parent.renew_certificate(parent)
    assert parent.tls == "old"
    assert [fields["reason"] for fields in told] == [str(error)]


@pytest.mark.parametrize(("ordered", "evidence"), [(set(), {"oom_kill": 2}), ({7}, {})], ids=["by the system", "by us"])
def test_a_worker_that_we_kill_was_not_killed_for_want_of_memory(ordered: set[int], evidence: dict[str, int]) -> None:
    parent: Any = SimpleNamespace(killed=ordered, oom_kills=SimpleNamespace(new=lambda: 2))
    _, found = Parent.dissect(parent, 7, Vitals(Row.alone(1)), -signal.SIGKILL)
    assert {name: value for name, value in found.items() if name == "oom_kill"} == evidence
    assert not ordered
