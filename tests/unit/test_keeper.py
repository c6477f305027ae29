"""Which pools does the keeper start, and when does it let one go?"""

from __future__ import annotations

import json
import py_compile
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork import keeper
from prefork.keeper import (
    FIRST_DELAY_S,
    KILL_S,
    LONGEST_DELAY_S,
    NEVER,
    PATIENCE_S,
    SLACK_S,
    STRIKE_AGAIN_S,
    YOUNG_S,
    Adopt,
    CloseListeners,
    Ended,
    Finish,
    Keeping,
    Notify,
    Said,
    Say,
    Signal,
    Start,
    Strike,
    Tell,
    Tick,
    back_off,
    decode,
    encode,
    signal_name,
)
from prefork.kept import runnable

BOOT = 60.0
STOPS = ("TERM", "INT", "QUIT")


def listening(generation: int, boot_timeout: float = BOOT) -> Said:
    return Said(generation, "listening", {"boot_timeout": boot_timeout})


def ready(generation: int, workers: int = 4) -> Said:
    return Said(generation, "ready", {"workers": workers, "boot_timeout": BOOT})


def hears(generation: int, workers: int = 4) -> Said:
    return Said(generation, "hears", {"workers": workers, "boot_timeout": BOOT})


def failed(generation: int, reason: str = "no shop", traceback: str = "Traceback") -> Said:
    return Said(generation, "failed", {"reason": reason, "traceback": traceback})


def leaving(generation: int) -> Said:
    return Said(generation, "leaving", {})


def ended(generation: int, status: int = 0, words: str = "") -> Ended:
    return Ended(generation, status, None, words)


def killed(generation: int, name: str = "SIGKILL", words: str = "") -> Ended:
    return Ended(generation, 137, name, words)


def serving(workers: int = 4) -> Keeping:
    """Return a keeper whose first pool serves since second 0."""
    keeping = Keeping()
    keeping.handle(listening(1), 0)
    assert keeping.handle(ready(1, workers), 0) == [Adopt(1)]
    return keeping


def deploying(workers: int = 4) -> Keeping:
    """Return a keeper whose second pool is under way since second 100."""
    keeping = serving(workers)
    keeping.handle(Signal("HUP"), 100)
    return keeping


def deployed() -> Keeping:
    keeping = deploying()
    keeping.handle(ready(2), 101)
    return keeping


# The first pool.


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_first_pool_that_cannot_start_ends_the_keeper_with_its_status_and_without_a_word(status: int) -> None:
    keeping = Keeping()
    keeping.handle(failed(1), 0)
    assert keeping.handle(ended(1, status), 1) == [Finish(status)]
    assert keeping.finished


def test_a_first_pool_that_is_killed_before_it_is_ready_ends_the_keeper_as_a_shell_would_say_it() -> None:
    assert Keeping().handle(killed(1), 1) == [Finish(137)]


def test_the_first_pool_may_take_its_time() -> None:
    keeping = Keeping()
    keeping.handle(listening(1, boot_timeout=1), 0)
    assert keeping.next_deadline == NEVER


def test_a_first_pool_that_fails_once_it_listens_closes_the_sockets() -> None:
    keeping = Keeping()
    assert keeping.handle(leaving(1), 1) == [CloseListeners(), Tell(1, "TERM", {})]
    assert keeping.handle(ended(1, 1), 2) == [Finish(1)]


def test_hup_before_the_first_pool_is_ready_is_a_deploy_afterwards() -> None:
    keeping = Keeping()
    assert keeping.handle(Signal("HUP"), 0) == []
    actions = keeping.handle(ready(1), 1)
    assert actions == [Adopt(1), Tell(1, "deploying", {"new_generation": 2}), Start(2, "deploy", None)]


# A pool that serves as well as it can, although one of its workers does not start.


def incomplete() -> Keeping:
    """Return a keeper whose first pool is at work, and not ready."""
    keeping = Keeping()
    keeping.handle(listening(1), 0)
    assert keeping.handle(hears(1), 0) == []
    return keeping


def test_new_code_is_deployed_beside_an_incomplete_pool_and_takes_its_place() -> None:
    keeping = incomplete()
    start = [Tell(1, "deploying", {"new_generation": 2}), Start(2, "deploy", None)]
    assert keeping.handle(Signal("HUP"), 100) == start
    assert keeping.handle(Signal("HUP"), 101) == []
    assert keeping.handle(ready(2), 102)[:2] == [Adopt(2), Tell(1, "superseded", {"new_generation": 2})]
    assert keeping.handle(leaving(1), 103) == keeping.handle(ended(1), 104) == []


def test_an_incomplete_pool_tells_of_new_code_that_fails_and_may_be_ready_after_all() -> None:
    keeping = incomplete()
    keeping.handle(Signal("HUP"), 100)
    assert keeping.handle(ready(1), 101) == [Adopt(1)]
    assert keeping.handle(ended(2, 1), 102)[0].order == "deploy_failed"
    keeping = incomplete()
    keeping.handle(Signal("HUP"), 100)
    assert keeping.handle(ended(2, 1), 102)[0] == Tell(
        1, "deploy_failed", {"new_generation": 2, "reason": "its process ended with status 1", "traceback": ""}
    )


@pytest.mark.parametrize("name", STOPS)
def test_an_incomplete_pool_stops_in_its_own_time(name: str) -> None:
    keeping = incomplete()
    assert keeping.handle(Signal(name), 1) == [Tell(1, name, {})]
    assert keeping.next_deadline == NEVER
    assert keeping.handle(leaving(1), 20) == [CloseListeners()]
    assert keeping.handle(ended(1), 21) == [Finish(0)]


def test_a_pool_that_begins_to_hear_when_it_was_struck_is_struck_no_more() -> None:
    keeping = Keeping()
    keeping.handle(Signal("TERM"), 0)
    assert keeping.handle(hears(1), 0.5) == []
    assert keeping.next_deadline == NEVER
    assert keeping.handle(ended(1), 20) == [Finish(0)]


def test_an_incomplete_first_pool_that_is_killed_ends_the_keeper_unless_new_code_is_under_way() -> None:
    assert incomplete().handle(killed(1), 1) == [Finish(137)]
    keeping = incomplete()
    keeping.handle(Signal("HUP"), 100)
    assert [type(action) for action in keeping.handle(killed(1), 101)] == [Say]
    assert keeping.handle(ready(2), 102) == [Adopt(2)]


def test_an_incomplete_pool_that_fails_closes_the_sockets() -> None:
    keeping = incomplete()
    keeping.handle(failed(1), 1)
    assert keeping.handle(leaving(1), 1) == [CloseListeners(), Tell(1, "TERM", {})]
    assert keeping.handle(ended(1, 1), 2) == [Finish(1)]


def test_a_pool_in_the_place_of_a_dead_one_may_be_incomplete_for_as_long_as_it_likes() -> None:
    keeping = serving()
    keeping.handle(killed(1), 100)
    keeping.handle(listening(2), 100)
    assert keeping.handle(hears(2), 101) == []
    assert keeping.next_deadline == NEVER
    assert keeping.handle(Signal("HUP"), 300)[-1] == Start(3, "deploy", None)
    assert keeping.handle(ready(3), 301) == [Adopt(3), Tell(2, "superseded", {"new_generation": 3})]


def test_a_pool_in_the_place_of_a_dead_one_that_fails_leaves_it_to_new_code_that_is_under_way() -> None:
    keeping = serving()
    keeping.handle(killed(1), 100)
    keeping.handle(hears(2), 101)
    keeping.handle(Signal("HUP"), 102)
    keeping.handle(failed(2), 103)
    assert [type(action) for action in keeping.handle(leaving(2), 103)] == [Say]
    assert keeping.next_deadline == 102 + BOOT + SLACK_S
    assert keeping.handle(ready(3), 104) == [Adopt(3)]


def test_new_code_that_hears_is_late_all_the_same() -> None:
    keeping = deploying()
    keeping.handle(hears(2), 101)
    assert keeping.next_deadline == 100 + BOOT + SLACK_S
    assert keeping.handle(Signal("TERM"), 102) == [Tell(1, "TERM", {}), Tell(2, "TERM", {})]
    assert keeping.next_deadline == NEVER


# Deploys.


def test_hup_starts_a_new_pool_and_leaves_the_old_one_alone() -> None:
    actions = serving().handle(Signal("HUP"), 100)
    assert actions == [Tell(1, "deploying", {"new_generation": 2}), Start(2, "deploy", None)]


def test_the_old_pool_goes_when_the_new_one_is_ready() -> None:
    keeping = deploying()
    assert keeping.handle(ready(2), 101) == [Adopt(2), Tell(1, "superseded", {"new_generation": 2})]
    assert keeping.handle(leaving(1), 101) == []
    assert keeping.handle(ended(1), 500) == []
    assert not keeping.finished


def test_an_old_pool_that_dies_on_its_way_out_is_not_missed() -> None:
    assert deployed().handle(killed(1), 102) == []


@pytest.mark.parametrize(
    ("said", "event", "reason", "traceback"),
    [
        pytest.param([failed(2)], ended(2, 1), "no shop", "Traceback", id="says why"),
        pytest.param([failed(2), failed(2, "again")], ended(2, 1), "no shop", "Traceback", id="only the first counts"),
        pytest.param([], ended(2, 3, "words"), "its process ended with status 3", "words", id="without a word"),
        pytest.param([], ended(2), "its process ended with status 0", "", id="sys.exit()"),
        pytest.param([], killed(2, "SIGSEGV", "stack"), "its process was ended by SIGSEGV", "stack", id="crash"),
        pytest.param([failed(2, "late", "")], killed(2, words="stack"), "late", "stack", id="stack of what was late"),
        pytest.param([], leaving(2), "it was stopped", "", id="stopped"),
        pytest.param([failed(2)], leaving(2), "no shop", "Traceback", id="goes by itself"),
    ],
)
def test_a_new_pool_that_fails_is_told_of_once_by_the_old_one(
    said: list[Said], event: Ended | Said, reason: str, traceback: str
) -> None:
    keeping = deploying()
    for one in said:
        assert keeping.handle(one, 101) == []
    told = {"new_generation": 2, "reason": reason, "traceback": traceback}
    assert keeping.handle(event, 102) == [Tell(1, "deploy_failed", told)]
    assert keeping.handle(ended(2), 103) == []
    assert keeping.handle(Signal("HUP"), 104)[-1] == Start(3, "deploy", None)


def test_many_hups_during_a_deploy_are_one_more_deploy() -> None:
    keeping = deploying()
    assert keeping.handle(Signal("HUP"), 101) == keeping.handle(Signal("HUP"), 102) == []
    assert keeping.handle(ready(2), 103)[-2:] == [
        Tell(2, "deploying", {"new_generation": 3}),
        Start(3, "deploy", None),
    ]
    assert keeping.handle(ready(3), 104) == [Adopt(3), Tell(2, "superseded", {"new_generation": 3})]


def test_a_remembered_hup_is_a_deploy_after_one_that_failed_too() -> None:
    keeping = deploying()
    keeping.handle(Signal("HUP"), 101)
    assert keeping.handle(ended(2, 1), 102)[-1] == Start(3, "deploy", None)
    assert keeping.handle(ended(3, 1), 103)[-1] != Start(4, "deploy", None)


def test_who_is_late_is_asked_to_go_then_shows_its_stack_and_then_is_killed() -> None:
    keeping = deploying()
    late = 100 + BOOT + SLACK_S
    assert keeping.next_deadline == late
    assert keeping.handle(Tick(), late - 1) == []
    assert keeping.handle(Tick(), late) == [Tell(2, "superseded", {"new_generation": 2})]
    assert keeping.handle(Tick(), late + PATIENCE_S) == [Strike(2, "ABRT")]
    assert keeping.handle(Tick(), late + 2 * PATIENCE_S) == [Strike(2, "KILL")]
    assert keeping.next_deadline == NEVER
    told = {"new_generation": 2, "reason": "not ready after 65 s", "traceback": "stack"}
    assert keeping.handle(killed(2, words="stack"), late + 5) == [Tell(1, "deploy_failed", told)]


def test_who_became_ready_before_it_read_that_it_is_late_serves() -> None:
    keeping = deploying()
    late = 100 + BOOT + SLACK_S
    keeping.handle(Tick(), late)
    assert keeping.handle(ready(2), late + 0.01) == [Adopt(2), Tell(1, "superseded", {"new_generation": 2})]
    assert keeping.next_deadline == NEVER


def test_who_becomes_ready_when_it_is_struck_already_is_too_late() -> None:
    keeping = deploying()
    late = 100 + BOOT + SLACK_S
    keeping.handle(Tick(), late)
    keeping.handle(Tick(), late + PATIENCE_S)
    assert keeping.handle(ready(2), late + PATIENCE_S) == []
    told = {"new_generation": 2, "reason": "not ready after 65 s", "traceback": ""}
    assert keeping.handle(killed(2, "SIGABRT"), late + PATIENCE_S) == [Tell(1, "deploy_failed", told)]


def test_what_a_late_pool_has_said_stands() -> None:
    keeping = deploying()
    keeping.handle(failed(2), 101)
    keeping.handle(Tick(), 100 + BOOT + SLACK_S)
    assert keeping.handle(leaving(2), 166)[0].facts["reason"] == "no shop"


def test_a_new_pool_may_say_itself_how_long_it_may_take() -> None:
    keeping = deploying()
    keeping.handle(listening(2, boot_timeout=200), 101)
    assert keeping.next_deadline == 300 + SLACK_S


# The number of workers.


@pytest.mark.parametrize(("signals", "workers"), [("TTIN", 5), ("TTIN TTIN", 6), ("TTOU TTOU TTOU TTOU TTOU", 1)])
def test_a_number_that_somebody_has_chosen_outlives_a_deploy(signals: str, workers: int) -> None:
    keeping = serving()
    for name in signals.split():
        assert keeping.handle(Signal(name), 1) == [Tell(1, name, {})]
    assert keeping.handle(Signal("HUP"), 2)[-1] == Start(2, "deploy", workers)
    assert len(keeping.handle(ready(2, workers), 3)) == 2


@pytest.mark.parametrize("name", ["TTIN", "TTOU"])
def test_a_number_that_changes_during_a_deploy_is_told_to_both(name: str) -> None:
    keeping = deploying()
    assert keeping.handle(Signal(name), 101) == [Tell(1, name, {})]
    assert keeping.handle(ready(2), 102)[-1] == Tell(2, name, {})
    assert keeping.handle(Signal("HUP"), 103)[-1].workers == (5 if name == "TTIN" else 3)


def test_a_first_pool_hears_of_its_number_when_it_can_hear() -> None:
    assert Keeping().handle(Signal("TTIN"), 0) == [Tell(1, "TTIN", {})]


def test_a_number_that_was_chosen_before_the_first_pool_could_hear_outlives_a_deploy() -> None:
    keeping = Keeping()
    for _ in range(2):
        assert keeping.handle(Signal("TTIN"), 0) == [Tell(1, "TTIN", {})]
    assert keeping.handle(hears(1), 1) == []  # the orders lie before it
    assert keeping.handle(ready(1, 6), 2) == [Adopt(1)]
    assert keeping.handle(Signal("HUP"), 3)[-1] == Start(2, "deploy", 6)


def test_a_number_that_is_chosen_while_there_is_no_pool_is_that_of_the_next() -> None:
    keeping = serving()
    keeping.handle(killed(1), 1)
    keeping.handle(ended(2, 1), 2)
    assert keeping.handle(Signal("TTIN"), 2) == []
    assert keeping.handle(Tick(), 2 + LONGEST_DELAY_S) == [Start(3, "restart", 5)]


def test_a_number_that_is_chosen_before_a_pool_in_the_place_of_a_dead_one_hears_is_told_to_it_then() -> None:
    keeping = serving()
    keeping.handle(killed(1), 1)
    assert keeping.handle(Signal("TTOU"), 2) == []
    assert keeping.handle(hears(2), 3) == [Tell(2, "TTOU", {})]
    assert keeping.handle(Signal("TTOU"), 4) == [Tell(2, "TTOU", {})]
    assert keeping.handle(ready(2, 4), 5) == [Adopt(2)]  # it has said so before it read what it was told
    assert keeping.handle(Signal("HUP"), 6)[-1] == Start(3, "deploy", 2)


def test_recycling_is_for_the_current_pool_and_log_files_for_all() -> None:
    keeping = deploying()
    assert keeping.handle(Signal("USR2"), 101) == [Tell(1, "USR2", {})]
    assert keeping.handle(Signal("USR1"), 101) == [Tell(1, "USR1", {}), Tell(2, "USR1", {})]


def test_other_signals_mean_nothing() -> None:
    assert serving().handle(Signal("WINCH"), 1) == []


def test_strangers_mean_nothing() -> None:
    keeping = serving()
    assert keeping.handle(ended(7), 1) == keeping.handle(ready(7), 1) == keeping.handle(ready(1), 1) == []
    assert keeping.handle(Said(1, "unheard of", {}), 1) == keeping.handle(object(), 1) == []
    assert deploying().handle(Said(2, "unheard of", {}), 1) == []


# systemd.


def test_only_the_pool_that_stands_for_the_service_speaks_to_systemd() -> None:
    def notify(generation: int) -> Said:
        return Said(generation, "notify", {"text": "STATUS=x"})

    assert Keeping().handle(notify(1), 0) == [Notify("STATUS=x")]
    keeping = deploying()
    assert keeping.handle(notify(1), 101) == [Notify("STATUS=x")]
    assert keeping.handle(notify(2), 101) == []
    keeping.handle(ready(2), 102)
    assert keeping.handle(notify(1), 103) == []
    assert keeping.handle(notify(2), 103) == [Notify("STATUS=x")]
    keeping.handle(killed(2), 104)
    assert keeping.handle(notify(3), 105) == [Notify("STATUS=x")]


def test_the_keeper_gives_signs_of_life_while_there_is_no_pool_that_could() -> None:
    keeping = Keeping()
    lonely = [keeping.alone]
    for event in (hears(1), ready(1), killed(1), hears(2), killed(2), Signal("TERM")):
        keeping.handle(event, 100)
        lonely.append(keeping.alone)
    assert lonely == [False, False, False, True, False, True, False]


# Stops.


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_is_passed_on_and_the_status_is_the_pools(name: str) -> None:
    keeping = serving()
    assert keeping.handle(Signal(name), 1) == [Tell(1, name, {})]
    assert keeping.handle(leaving(1), 1) == [CloseListeners()]
    assert keeping.handle(ended(1, 0), 2) == [Finish(0)]


def test_a_second_stop_is_passed_on_too() -> None:
    keeping = serving()
    keeping.handle(Signal("INT"), 1)
    assert keeping.handle(Signal("INT"), 2) == [Tell(1, "INT", {})]


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_during_a_deploy_stops_both(name: str) -> None:
    keeping = deploying()
    struck = "INT" if name == "INT" else "TERM"
    assert keeping.handle(Signal(name), 101) == [Tell(1, name, {}), Tell(2, name, {}), Strike(2, struck)]
    assert keeping.handle(ended(2, 1), 102) == []
    assert keeping.handle(leaving(1), 102) == [CloseListeners()]
    assert keeping.handle(ended(1), 103) == [Finish(0)]


def test_a_pool_that_does_not_hear_the_stop_is_told_again_and_then_killed() -> None:
    keeping = Keeping()
    keeping.handle(Signal("TERM"), 0)
    assert keeping.handle(Tick(), STRIKE_AGAIN_S) == [Strike(1, "TERM")]
    keeping.handle(Signal("TERM"), KILL_S - 0.1)  # patience does not begin anew
    assert keeping.handle(Tick(), KILL_S) == [Strike(1, "KILL")]
    assert keeping.handle(Tick(), KILL_S + STRIKE_AGAIN_S) == []
    assert keeping.handle(killed(1), KILL_S) == [Finish(137)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_who_dies_of_the_stop_that_it_was_sent_has_stopped(name: str) -> None:
    keeping = Keeping()
    keeping.handle(Signal("TERM"), 0)
    assert keeping.handle(killed(1, name), 1) == [Finish(0)]


def test_a_new_pool_that_becomes_ready_while_all_stop_stops_too() -> None:
    keeping = deploying()
    keeping.handle(Signal("TERM"), 101)
    assert keeping.handle(listening(2), 101) == []
    assert keeping.handle(ready(2), 101) == [Adopt(2), Tell(1, "superseded", {"new_generation": 2})]
    assert keeping.handle(leaving(2), 101) == [CloseListeners()]
    assert keeping.handle(ended(1), 102) == []
    assert keeping.handle(ended(2), 103) == [Finish(0)]


def test_a_new_pool_that_leaves_while_all_stop_is_no_failure() -> None:
    keeping = deploying()
    keeping.handle(Signal("TERM"), 101)
    assert keeping.handle(leaving(2), 101) == []


def test_a_stop_waits_for_pools_that_are_on_their_way_out() -> None:
    keeping = deployed()
    assert keeping.handle(Signal("TERM"), 102) == [Tell(1, "TERM", {}), Tell(2, "TERM", {})]
    assert keeping.handle(ended(2), 103) == []
    assert keeping.handle(ended(1, 0), 104) == [Finish(0)]


@pytest.mark.parametrize("name", ["HUP", "TTIN", "USR2"])
def test_nothing_begins_during_a_stop(name: str) -> None:
    keeping = serving()
    keeping.handle(Signal("TERM"), 1)
    keeping.handle(leaving(1), 1)
    assert keeping.handle(Signal(name), 1) == []


def test_a_remembered_hup_is_forgotten_at_a_stop() -> None:
    keeping = deploying()
    keeping.handle(Signal("HUP"), 101)
    keeping.handle(Signal("TERM"), 102)
    assert keeping.handle(ended(2), 103) == []


@pytest.mark.parametrize("status", [0, 1])
def test_a_pool_that_stops_by_itself_ends_the_keeper_and_a_deploy(status: int) -> None:
    keeping = deploying()
    assert keeping.handle(leaving(1), 101)[0] == CloseListeners()
    assert keeping.handle(ended(2, 5), 102) == []
    assert keeping.handle(ended(1, status), 103) == [Finish(status)]


# A pool that dies as a whole.


def test_a_pool_that_dies_as_a_whole_is_started_anew_at_once() -> None:
    keeping = serving()
    died = {"generation": 1, "reason": "its process was ended by SIGKILL", "code": "PF423"}
    assert keeping.handle(killed(1), 100) == [Start(2, "restart", None), Say("pool.died", died)]
    assert keeping.handle(ready(2), 101) == [Adopt(2)]


def test_a_pool_that_ends_without_saying_so_has_died() -> None:
    assert serving().handle(ended(1, 0), 100)[0] == Start(2, "restart", None)


def test_a_new_pool_that_is_under_way_takes_the_place_of_one_that_died() -> None:
    keeping = deploying()
    assert [type(action) for action in keeping.handle(killed(1), 101)] == [Say]
    assert keeping.handle(ready(2), 102) == [Adopt(2)]


def test_one_that_dies_again_and_again_is_waited_for() -> None:
    keeping = serving()
    keeping.handle(killed(1), 1)
    keeping.handle(ready(2), 2)
    assert [type(action) for action in keeping.handle(killed(2), 3)] == [Say]
    assert keeping.next_deadline == 3 + FIRST_DELAY_S
    assert keeping.handle(Tick(), 3 + FIRST_DELAY_S) == [Start(3, "restart", None)]
    keeping.handle(ready(3), 4)
    assert keeping.handle(killed(3), 5 + YOUNG_S)[0] == Start(4, "restart", None)


def test_one_that_cannot_start_again_is_told_of_and_tried_again() -> None:
    keeping = serving()
    keeping.handle(killed(1), 100)
    keeping.handle(failed(2), 101)
    told = {"new_generation": 2, "reason": "no shop", "traceback": "Traceback", "code": "PF421"}
    assert keeping.handle(ended(2, 1), 101) == [Say("pool.deploy_failed", told)]
    assert keeping.next_deadline == 101 + FIRST_DELAY_S
    assert keeping.handle(Signal("HUP"), 101.1) == [Start(3, "restart", None)]
    assert keeping.next_deadline == 101.1 + BOOT + SLACK_S


def test_a_stop_while_there_is_no_pool_is_the_end() -> None:
    keeping = serving()
    keeping.handle(killed(1), 100)
    keeping.handle(ended(2, 1), 101)
    assert keeping.handle(Signal("TTIN"), 101) == []
    assert keeping.handle(Signal("TERM"), 101) == [Finish(0)]


def test_the_wait_is_bounded() -> None:
    assert back_off(0) == 0
    assert back_off(1) == FIRST_DELAY_S
    assert back_off(100) == LONGEST_DELAY_S


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "ü\n\x00"], "b": {"c": (1, 2)}}, "words", []])
def test_json_is_written_and_read_as_by_its_module(value: Any) -> None:
    assert encode(value) == json.dumps(value)
    assert decode(encode(value).encode()) == json.loads(json.dumps(value))


@pytest.mark.parametrize("data", [b"", b"{", b"nope", b'{"a": 1} x', b'{"a" 1}', b'"\x01"', b"\xff", b'"\\', b"[1,"])
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_signals_have_the_names_of_the_standard_library() -> None:
    assert {number: signal_name(number) for number in signal.Signals} == {each: each.name for each in signal.Signals}
    assert signal_name(40) == "SIG40"


def test_bytecode_of_another_source_is_not_run(tmp_path: Path) -> None:
    source, compiled = tmp_path / "keeper.py", str(tmp_path / "keeper.pyc")
    files = str(source), compiled
    assert runnable(*files) is None
    source.write_text("old = True")
    assert runnable(*files) == str(source)
    py_compile.compile(str(source), compiled)
    assert runnable(*files) == compiled
    source.write_text("old = False")
    assert runnable(*files) == str(source)
    py_compile.compile(str(source), compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text("old = None")
    assert runnable(*files) == compiled
    assert runnable(str(source), None) == str(source)


def test_a_keeper_is_a_small_program() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import keeper; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(Path(keeper.__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"collections", "enum", "json", "re", "signal", "socket", "typing"} & set(told.stdout.split())
