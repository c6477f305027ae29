"""What does the soak find unexplained, and what does it take for growth?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from soak import IN_HAND, Loss, growing, unexplained

AT = 1_800_000_000.0


def death(*named: str, held: int, at: float = AT) -> dict[str, Any]:
    """Return the record of a death, of which ``held`` connections are not named."""
    stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return {"timestamp": stamp, "requests_lost": [{"path": path} for path in named], "connections_lost": held}


def test_a_failure_at_a_death_that_counts_it_is_explained() -> None:
    losses = [Loss("/idle", "EOF", AT - 0.1), Loss("/asked", "EOF", AT + 0.1)]
    assert unexplained(losses, [death("/asked", held=1)]) == []


def test_a_request_that_was_named_and_yet_answered_leaves_its_connection_to_be_lost() -> None:
    assert unexplained([Loss("/later", "EOF", AT)], [death("/answered", held=0)]) == []


def test_more_failures_than_a_death_counts_are_unexplained() -> None:
    losses = [Loss(f"/{number}", "EOF", AT) for number in range(2 + IN_HAND)]
    assert unexplained(losses, [death("/0", held=1)]) == []
    assert len(unexplained([*losses, Loss("/more", "EOF", AT)], [death("/0", held=1)])) == 1


def test_a_failure_without_a_death_near_it_is_unexplained() -> None:
    assert unexplained([Loss("/a", "EOF", AT + 60)], [death(held=5)]) == [f"/a: EOF at {AT + 60:.3f}"]
    assert len(unexplained([Loss("/a", "EOF", AT)], [])) == 1


def test_a_failure_that_was_seen_late_by_a_busy_process_is_explained_by_the_death_before() -> None:
    assert unexplained([Loss("/a", "EOF", AT + 60, late_s=59)], [death(held=1)]) == []
    assert unexplained([Loss("/a", "EOF", AT - 60, late_s=59)], [death(held=1)]) != []


def test_what_is_named_does_not_take_the_place_of_another() -> None:
    losses = [Loss("/idle", "EOF", AT), Loss("/asked", "EOF", AT)]
    assert unexplained(losses, [death("/asked", held=0), death(held=1)]) == []


def test_what_only_goes_up_is_growing_and_what_goes_up_and_down_is_not() -> None:
    assert growing([{"parent MiB": float(number)} for number in range(10, 40)]) != []
    assert growing([{"parent MiB": float(10 + number % 5)} for number in range(30)]) == []
    assert growing([{"parent MiB": 1.0}, {"parent MiB": 9.0}]) == []
