"""When is a worker forked, retired, signalled, killed? Whole lives in a simulated pool, and single decisions."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from prefork.config import Config
from prefork.supervisor import (
    COUNTED,
    NEXT,
    Action,
    CloseAfterAnswer,
    CloseListeners,
    Emit,
    Event,
    Examine,
    FilesChanged,
    Finish,
    ForkFailed,
    Kill,
    LeaveListeners,
    Life,
    Look,
    Ping,
    Release,
    ReopenLogs,
    Retire,
    SignalReceived,
    Spawn,
    Stop,
    Superseded,
    Supervisor,
    Tick,
    WorkerBootFailed,
    WorkerExamined,
    WorkerExited,
    WorkerLeaving,
    WorkerPulse,
    WorkerReady,
    WorkerRetiring,
    back_off,
    draw_budget,
)


class Pool:
    """Performs actions in memory, and keeps what was done."""

    def __init__(self, **options: Any) -> None:
        self.config = Config.of(**{"max_workers": 2, "heartbeat_timeout": 0, **options})
        self.machine = Supervisor(self.config, Random(1))
        self.now = 100.0
        self.alive: dict[int, int] = {}
        self.done: list[Action] = []
        self.refused = 0
        self.deaf: set[int] = set()
        self.beats: dict[int, float] = {}
        self.take(self.machine.start(self.now))

    def take(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, Spawn):
                assert action.number not in self.alive.values()
                self.alive[action.worker] = action.number
        self.done += actions
        followed: list[Action] = []
        for action in actions:
            if isinstance(action, Look):
                self.send(WorkerPulse(action.worker, self.now, self.beats.get(action.worker, 0.0), 0, serving=False))
            elif isinstance(action, Ping):
                if action.worker not in self.deaf:
                    self.beats[action.worker] = self.now + 0.001
            elif isinstance(action, Examine):
                followed += self.send(WorkerExamined(action.worker, stopped=False, stack="in compiled code"))
        return actions + followed

    def send(self, event: Event, after: float = 0.0) -> list[Action]:
        self.now += after
        return self.take(self.machine.handle(event, self.now))

    def exit(self, worker: int, code: int | None = 0, signal: str | None = None, after: float = 0.0) -> list[Action]:
        self.alive.pop(worker)
        return self.send(WorkerExited(worker, code, signal), after)

    def records(self, name: str) -> list[Emit]:
        return [action for action in self.done if isinstance(action, Emit) and action.record == name]


def serving(**options: Any) -> Pool:
    pool = Pool(**options)
    for worker in list(pool.alive):
        pool.send(WorkerReady(worker, 0.01))
    return pool


def spawns(actions: list[Action]) -> list[Spawn]:
    return [action for action in actions if isinstance(action, Spawn)]


def test_a_pool_is_ready_once_as_many_are_wanted_as_serve() -> None:
    pool = Pool(max_workers=3)
    pool.send(WorkerReady(0, 0.01))
    pool.send(WorkerReady(1, 0.01))
    assert not pool.records("pool.ready")
    pool.send(SignalReceived("TTOU"))
    assert [emit.fields["workers"] for emit in pool.records("pool.ready")] == [2]
    pool.send(WorkerReady(2, 0.01))
    pool.send(SignalReceived("TTOU"))
    assert len(pool.records("pool.ready")) == 1


def test_every_life_has_its_row_and_ends() -> None:
    assert set(NEXT) == set(Life)
    assert all(row.get(WorkerExited) is Life.GONE for life, row in NEXT.items() if life is not Life.GONE)
    assert Life.RETIRING not in COUNTED


def test_pool_starts_with_all_workers_and_says_when_they_serve() -> None:
    pool = serving(max_workers=3)
    assert [action.number for action in spawns(pool.done)] == [0, 1, 2]
    assert [emit.fields["workers"] for emit in pool.records("pool.ready")] == [3]
    assert pool.machine.next_deadline is None


def test_retiring_worker_is_replaced_before_it_retires() -> None:
    pool = serving()
    (spawn,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    assert pool.send(WorkerRetiring(0, "max_requests", 76)) == []
    assert Release(0) in pool.send(WorkerReady(spawn.worker, 0.01))
    pool.send(WorkerLeaving(0, 100, 0))
    (record,) = [a for a in pool.exit(0) if isinstance(a, Emit)]
    assert record.fields["expected"]
    assert record.fields["requests"] == 100
    assert not spawns(pool.done[-1:])


def test_crashed_worker_is_replaced_at_once() -> None:
    pool = serving()
    actions = pool.exit(0, None, "SIGKILL", after=60.0)
    assert len(spawns(actions)) == 1
    assert spawns(actions)[0].number == 0
    assert not pool.records("worker.exited")[0].fields["expected"]


def test_successor_that_dies_is_followed_by_another_and_the_old_worker_serves_on() -> None:
    pool = serving()
    (first,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75), after=60.0))
    (second,) = spawns(pool.exit(first.worker, 1))
    assert pool.send(WorkerReady(second.worker, 0.01))[-1] == Release(0)


def test_worker_that_dies_while_its_successor_starts_is_not_replaced_twice() -> None:
    pool = serving()
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75), after=60.0))
    assert not spawns(pool.exit(0, None, "SIGSEGV"))
    assert not [a for a in pool.send(WorkerReady(heir.worker, 0.1)) if isinstance(a, (Release, Retire))]


@pytest.mark.parametrize("name", ["HUP", "USR2"])
def test_recycling_replaces_every_worker_the_new_ones_first(name: str) -> None:
    pool = serving()
    heirs = spawns(pool.send(SignalReceived(name)))
    assert len(heirs) == 2
    assert not spawns(pool.send(SignalReceived(name)))
    retired = [
        action for heir in heirs for action in pool.send(WorkerReady(heir.worker, 0.1)) if isinstance(action, Retire)
    ]
    assert retired == [Retire(0), Retire(1)]


def test_recycling_hurries_those_that_were_only_released() -> None:
    pool = serving()
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    assert Release(0) in pool.send(WorkerReady(heir.worker, 0.1))
    assert Retire(0) in pool.send(SignalReceived("USR2"))
    assert Retire(0) not in pool.send(SignalReceived("USR2"))


def test_worker_that_crashes_when_it_was_about_to_retire_has_crashed() -> None:
    pool = serving()
    pool.send(WorkerRetiring(0, "max_requests", 75))
    pool.exit(0, None, "SIGSEGV")
    (heir,) = spawns(pool.send(WorkerRetiring(1, "max_requests", 75)))
    pool.send(WorkerReady(heir.worker, 0.1))
    pool.exit(1, 1)
    assert [record.fields["reason"] for record in pool.records("worker.exited")] == ["crash", "crash"]


def test_retirees_are_bounded_and_further_recycles_wait() -> None:
    pool = serving(max_workers=1)
    current = 0
    for _ in range(2):
        (heir,) = spawns(pool.send(WorkerRetiring(current, "max_requests", 1), after=20.0))
        pool.send(WorkerReady(heir.worker, 0.1))
        current = heir.worker
    assert not spawns(pool.send(WorkerRetiring(current, "max_requests", 1)))
    assert pool.machine.next_deadline is None
    assert len(spawns(pool.exit(0))) == 1


def test_who_waits_for_others_to_leave_says_so_once_and_what_a_signal_wants_does_not_wait() -> None:
    pool = serving(max_workers=2, max_retiring=1)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    assert not spawns(pool.send(WorkerRetiring(1, "app", 5)))
    assert not pool.records("worker.retirement_delayed")  # the one that starts will be ready in a moment
    pool.send(WorkerReady(heir.worker, 0.1))
    pool.send(Tick())
    (told,) = pool.records("worker.retirement_delayed")
    assert told.worker == 1
    assert "max_retiring 1" in told.fields["reason"]
    assert len(spawns(pool.send(SignalReceived("USR2")))) == 2
    assert len(pool.records("worker.retirement_delayed")) == 1


def test_whose_successor_cannot_be_had_says_why_once_and_serves_on() -> None:
    pool = serving(max_workers=1)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    for refused in ("EAGAIN", "ENOMEM"):
        pool.alive.pop(heir.worker)
        pool.send(ForkFailed(heir.worker, refused))
        (heir,) = spawns(pool.send(Tick(), after=5.0))
    (told,) = pool.records("worker.retirement_delayed")
    assert told.fields["reason"] == "the system refused to fork: EAGAIN"
    assert Release(0) in pool.send(WorkerReady(heir.worker, 0.1))


def test_whose_successors_die_says_why_once_and_serves_on() -> None:
    pool = serving(max_workers=1)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    (heir,) = spawns(pool.exit(heir.worker, 1))
    assert not pool.records("worker.retirement_delayed")
    for _ in range(3):
        pool.exit(heir.worker, 1)
        (heir,) = spawns(pool.send(Tick(), after=5.0))
    (told,) = pool.records("worker.retirement_delayed")
    assert (told.worker, told.fields["reason"]) == (0, "its successors end before they serve")
    assert 0 in pool.alive


def test_worker_is_replaced_when_it_is_of_age_and_each_has_its_own() -> None:
    pool = serving(max_workers=4, max_worker_age=100)
    ages = []
    for _ in range(4):
        deadline = pool.machine.next_deadline
        assert deadline is not None
        assert not pool.send(Tick(), after=deadline - pool.now - 0.1)
        (heir,) = spawns(pool.send(Tick(), after=0.1))
        ages.append(deadline - 100)
        (retired,) = [a for a in pool.send(WorkerReady(heir.worker, 0.1)) if isinstance(a, Retire)]
        pool.exit(retired.worker)
    assert all(75 + 6.25 * place <= age <= 81.25 + 6.25 * place for place, age in enumerate(ages))
    assert [record.fields["reason"] for record in pool.records("worker.retiring")] == ["max_age"] * 4
    assert {record.fields["reason"] for record in pool.records("worker.exited")} == {"max_age"}


def test_worker_of_age_that_has_its_successor_already_goes_at_once() -> None:
    pool = serving(max_workers=1, max_worker_age=100)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    assert Release(0) in pool.send(WorkerReady(heir.worker, 0.1))
    actions = pool.send(Tick(), after=100)
    assert Retire(0) in actions
    assert spawns(actions)  # the heir is of the same age
    assert [record.fields["reason"] for record in pool.records("worker.retiring")] == ["max_requests", "max_age"]


def test_two_causes_replace_a_worker_once() -> None:
    pool = serving(max_workers=1, max_worker_age=50)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    assert not spawns(pool.send(Tick(), after=50))
    assert not spawns(pool.send(SignalReceived("HUP")))
    assert pool.send(WorkerRetiring(0, "app", 80)) == []
    assert [a for a in pool.send(WorkerReady(heir.worker, 0.1)) if isinstance(a, Retire | Release)] == [Retire(0)]
    assert [record.fields["reason"] for record in pool.records("worker.retiring")] == ["max_requests"]


def test_worker_says_how_much_memory_made_it_go() -> None:
    pool = serving()
    pool.send(WorkerRetiring(0, "max_memory", 7, 123))
    assert pool.records("worker.retiring")[0].fields == {"reason": "max_memory", "requests": 7, "memory_bytes": 123}


@pytest.mark.parametrize("name", ["HUP", "USR2"])
def test_whom_a_signal_replaces_says_so(name: str) -> None:
    pool = serving()
    pool.send(SignalReceived(name))
    assert [record.fields["reason"] for record in pool.records("worker.retiring")] == [name.lower()] * 2


def test_quick_deaths_back_off_and_calm_makes_good() -> None:
    pool = serving(max_workers=1)
    assert len(spawns(pool.exit(0, 1))) == 1
    actions = pool.exit(1, 1)
    assert not spawns(actions)
    assert pool.records("worker.respawn_delayed")[0].fields["delay_s"] == 0.5
    assert pool.machine.next_deadline == pool.now + 0.5
    assert not spawns(pool.send(Tick()))
    (again,) = spawns(pool.send(Tick(), after=0.5))
    pool.send(WorkerReady(again.worker, 0.1))
    assert len(spawns(pool.exit(again.worker, None, "SIGKILL", after=60.0))) == 1
    (last,) = list(pool.alive)
    assert len(spawns(pool.exit(last, 1))) == 1
    assert [back_off(n) for n in (0, 1, 2, 3, 50)] == [0.0, 0.5, 1.0, 2.0, 30.0]


def test_a_wave_of_deaths_counts_as_one_and_is_made_good_at_once() -> None:
    pool = serving(max_workers=10)
    for worker in list(pool.alive):
        assert len(spawns(pool.exit(worker, None, "SIGKILL", after=0.01))) == 1
    assert not pool.records("worker.respawn_delayed")
    for worker in list(pool.alive):
        assert not spawns(pool.exit(worker, None, "SIGKILL", after=0.01))
    assert [record.fields["delay_s"] for record in pool.records("worker.respawn_delayed")] == [0.5]
    assert len(spawns(pool.send(Tick(), after=0.5))) == 10


def test_a_wave_of_deaths_at_the_start_does_not_end_a_pool_whose_other_workers_still_start() -> None:
    pool = Pool(max_workers=6)
    for worker in range(4):
        pool.exit(worker, None, "SIGSEGV", after=0.01)
    assert not pool.machine.finished
    pool.send(WorkerReady(5, 0.1))
    assert not pool.records("pool.boot_failed")


def test_workers_that_die_quickly_do_not_keep_the_others_from_being_relieved() -> None:
    pool = serving(max_workers=3)
    for _ in range(2):
        pool.exit(max(pool.alive), 1)
    assert pool.machine.next_deadline is not None
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    assert Release(0) in pool.send(WorkerReady(heir.worker, 0.1))


def test_successors_that_die_quickly_are_waited_for_longer_and_longer() -> None:
    pool = serving(max_workers=1)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    (heir,) = spawns(pool.exit(heir.worker, 1))
    assert not spawns(pool.exit(heir.worker, 1))
    assert pool.machine.next_deadline == pool.now + 0.5
    assert spawns(pool.send(Tick(), after=0.5))


def test_the_start_of_a_pool_is_that_of_its_parent() -> None:
    machine = Supervisor(Config.of(max_workers=1), Random(1))
    machine.start(100.0, began=95.0)
    *_, ready = machine.handle(WorkerReady(0, 0.1), 101.0)
    assert ready == Emit("pool.ready", {"workers": 1, "boot_s": 6.0})


def test_application_that_fails_in_the_first_worker_ends_the_pool_with_one_traceback() -> None:
    pool = Pool()
    actions = pool.send(WorkerBootFailed(0, "ValueError: x", "Traceback", "PF206"))
    assert CloseListeners() in actions
    pool.send(WorkerBootFailed(1, "ValueError: x", "Traceback"))
    pool.exit(0, 1)
    assert pool.exit(1, 1)[-1] == Finish(1)
    (told,) = pool.records("pool.boot_failed")
    assert told.fields["code"] == "PF206"
    assert pool.machine.exit_code == 1


def test_application_that_fails_later_is_recorded_and_tried_again() -> None:
    pool = serving()
    (heir,) = spawns(pool.exit(0, 1, after=60.0))
    pool.send(WorkerBootFailed(heir.worker, "ValueError: x", "Traceback"))
    assert len(pool.records("worker.boot_failed")) == 1
    assert not pool.machine.finished


def test_workers_that_die_silently_before_the_first_was_ready_end_the_pool() -> None:
    pool = Pool(max_workers=1)
    pool.exit(0, None, "SIGSEGV")
    pool.exit(1, None, "SIGSEGV")
    (third,) = spawns(pool.send(Tick(), after=1.0))
    pool.alive.pop(third.worker)
    last = WorkerExited(third.worker, None, "SIGSEGV", evidence={"stack": "in compiled code"})
    assert pool.send(last)[-1] == Finish(1)
    (told,) = pool.records("pool.boot_failed")
    assert told.fields["reason"] == "crash_loop: the last was ended by SIGSEGV"
    assert told.fields["traceback"] == "in compiled code"


def test_worker_that_never_boots_is_killed_again_and_again() -> None:
    pool = Pool(max_workers=1, boot_timeout=5)
    assert pool.machine.next_deadline == 105.0
    assert Kill(0) in pool.send(Tick(), after=5.0)
    assert Kill(0) not in pool.send(Tick(), after=1.0)
    assert Kill(0) in pool.send(Tick(), after=5.0)
    (told,) = pool.records("worker.boot_failed")
    assert told.fields == {"reason": "not ready after 5 s", "traceback": "in compiled code"}
    assert pool.send(WorkerReady(0, 0.1)) == []  # said before the kill, heard after it


def test_workers_that_never_boot_before_the_first_was_ready_end_the_pool() -> None:
    pool = Pool(max_workers=1, boot_timeout=5)
    worker = 0
    for _ in range(2):
        assert Kill(worker) in pool.send(Tick(), after=5.0)
        worker = spawns([*pool.exit(worker, None, "SIGKILL"), *pool.send(Tick(), after=1.0)])[0].worker
    assert Kill(worker) in pool.send(Tick(), after=5.0)
    assert pool.exit(worker, None, "SIGKILL")[-1] == Finish(1)
    (told,) = pool.records("pool.boot_failed")
    assert (told.fields["reason"], told.fields["code"]) == ("not ready after 5 s", "PF401")


def test_who_is_late_and_dies_before_it_was_examined_has_crashed() -> None:
    pool = Pool(max_workers=1, boot_timeout=5)
    pool.now += 5.0
    assert pool.machine.handle(Tick(), pool.now) == [Examine(0)]
    pool.exit(0, None, "SIGSEGV")
    assert not pool.records("worker.boot_failed")
    assert pool.send(WorkerExamined(0, stopped=False, stack="")) == []
    assert pool.records("worker.exited")[0].fields["reason"] == "crash"


def test_worker_that_survives_its_kill_is_recorded_once() -> None:
    pool = serving(max_workers=1, graceful_timeout=1)
    pool.send(SignalReceived("TERM"))
    for after in (1.0, 5.0, 5.0):
        assert Kill(0) in pool.send(Tick(), after=after)
    assert len(pool.records("worker.killed")) == 1


def test_forks_refused_together_are_one_failure() -> None:
    pool = Pool(max_workers=3)
    pool.alive.clear()
    for worker in range(3):
        pool.send(ForkFailed(worker, "EAGAIN"))
    assert [record.fields["delay_s"] for record in pool.records("pool.fork_failed")] == [0.5]
    assert len(spawns(pool.send(Tick(), after=0.5))) == 3


def test_refused_fork_is_tried_again_later() -> None:
    pool = serving()
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 1)))
    pool.alive.pop(heir.worker)
    pool.send(ForkFailed(heir.worker, "EAGAIN"))
    assert pool.machine.next_deadline == pool.now + 0.5
    assert len(spawns(pool.send(Tick(), after=0.5))) == 1


def test_pool_that_can_fork_nothing_gives_up() -> None:
    pool = Pool(max_workers=1, boot_timeout=1)
    pool.alive.clear()
    pool.send(ForkFailed(0, "EAGAIN"))
    (again,) = spawns(pool.send(Tick(), after=2.0))
    assert pool.send(ForkFailed(again.worker, "EAGAIN"))[-1] == Finish(1)
    (told,) = pool.records("pool.boot_failed")
    assert told.fields == {"reason": "EAGAIN", "attempts": 2, "code": "PF404"}


@pytest.mark.parametrize("name", ["TERM", "QUIT"])
def test_graceful_stop_drains_kills_what_is_left_and_ends_with_0(name: str) -> None:
    pool = serving(graceful_timeout=10)
    actions = pool.send(SignalReceived(name))
    assert [a for a in actions if isinstance(a, Stop)] == [Stop(0, quick=False), Stop(1, quick=False)]
    assert pool.send(SignalReceived(name)) == []
    assert pool.send(SignalReceived("HUP")) == pool.send(SignalReceived("TTIN")) == []
    pool.exit(0)
    assert Kill(1) in pool.send(Tick(), after=10.0)
    assert pool.records("worker.killed")
    assert pool.exit(1, None, "SIGKILL")[-1] == Finish(0)
    assert pool.send(Tick()) == []


def test_interrupt_gives_three_seconds_and_the_second_none() -> None:
    pool = serving()
    assert Stop(0, quick=True) in pool.send(SignalReceived("INT"))
    assert pool.machine.next_deadline == pool.now + 3.0
    assert pool.send(SignalReceived("INT"), after=0.1) == []  # the same key press
    assert [a for a in pool.send(SignalReceived("INT"), after=0.2) if isinstance(a, Kill)] == [Kill(0), Kill(1)]


def test_interrupt_after_term_makes_haste() -> None:
    pool = serving()
    pool.send(SignalReceived("TERM"))
    assert Stop(0, quick=True) in pool.send(SignalReceived("INT"))


def test_stop_while_workers_start_waits_for_them() -> None:
    pool = Pool()
    pool.send(SignalReceived("TERM"))
    assert pool.send(WorkerReady(0, 0.1)) == []
    pool.alive.pop(1)
    pool.send(ForkFailed(1, "EAGAIN"))
    assert pool.exit(0)[-1] == Finish(0)


def test_changed_file_ends_the_pool_with_3() -> None:
    pool = serving()
    pool.send(FilesChanged("app.py"))
    pool.exit(0)
    assert pool.exit(1)[-1] == Finish(3)


def test_that_all_are_recycled_is_said_once_and_again_for_the_next_time() -> None:
    pool = serving()
    for count in (1, 2):
        first, second = spawns(pool.send(SignalReceived("USR2"), after=60.0))
        pool.send(WorkerReady(first.worker, 0.1))
        assert len(pool.records("pool.recycled")) == count - 1
        pool.send(WorkerReady(second.worker, 0.1))
        assert [emit.fields["workers"] for emit in pool.records("pool.recycled")] == [2] * count
        pool.send(Tick(), after=1.0)
        assert len(pool.records("pool.recycled")) == count


def test_a_worker_that_crashes_while_all_are_recycled_counts_as_replaced() -> None:
    pool = serving()
    first, _second = spawns(pool.send(SignalReceived("USR2"), after=60.0))
    pool.send(WorkerReady(first.worker, 0.1))
    pool.exit(1, None, "SIGKILL")
    assert len(pool.records("pool.recycled")) == 1


def test_a_pool_that_goes_for_another_does_not_say_that_all_are_recycled() -> None:
    pool = serving()
    pool.send(SignalReceived("USR2"))
    pool.send(Superseded(2))
    for worker in list(pool.alive):
        pool.exit(worker)
    assert pool.machine.finished
    assert not pool.records("pool.recycled")


def test_a_pool_that_stops_does_not_say_that_all_are_recycled() -> None:
    pool = serving()
    pool.send(SignalReceived("USR2"))
    pool.send(SignalReceived("TERM"))
    for worker in list(pool.alive):
        pool.exit(worker)
    assert not pool.records("pool.recycled")


@pytest.mark.parametrize("name", ["TERM", "QUIT"])
def test_a_delayed_stop_serves_on_and_then_stops_as_usual(name: str) -> None:
    pool = serving(stop_delay=5)
    said = pool.send(SignalReceived(name))
    assert said == [
        Emit("pool.stop_delayed", {"signal": name, "delay_s": 5.0}),
        CloseAfterAnswer(0),
        CloseAfterAnswer(1),
    ]
    assert pool.machine.next_deadline == pool.now + 5
    for again in ("TERM", "QUIT", "HUP", "USR2", "TTIN", "TTOU"):
        assert pool.send(SignalReceived(again), after=0.5) == []
    assert not [a for a in pool.send(Tick(), after=1.9) if isinstance(a, Stop)]
    stopped = pool.send(Tick(), after=0.2)
    assert [a for a in stopped if isinstance(a, Stop)] == [Stop(0, quick=False), Stop(1, quick=False)]
    assert pool.records("pool.stopping")[0].fields["signal"] == name
    assert not [a for a in pool.send(Tick(), after=1.0) if isinstance(a, Stop)]
    pool.exit(0)
    assert pool.exit(1)[-1] == Finish(0)


def test_who_is_forked_while_the_stop_waits_closes_connections_too() -> None:
    pool = serving(stop_delay=5)
    pool.send(SignalReceived("TERM"), after=60.0)
    (heir,) = spawns(pool.exit(0, None, "SIGKILL"))
    assert CloseAfterAnswer(heir.worker) in pool.send(WorkerReady(heir.worker, 0.01))


def test_an_interrupt_does_not_wait_for_the_delay() -> None:
    pool = serving(stop_delay=5)
    pool.send(SignalReceived("TERM"))
    assert Stop(0, quick=True) in pool.send(SignalReceived("INT"))
    assert pool.send(SignalReceived("TERM")) == []
    pool.exit(0)
    assert pool.exit(1)[-1] == Finish(0)


def test_changed_file_means_nothing_to_a_pool_that_stops() -> None:
    pool = serving()
    pool.send(SignalReceived("TERM"))
    assert pool.send(FilesChanged("app.py")) == []
    pool.exit(0)
    assert pool.exit(1)[-1] == Finish(0)


def test_number_of_workers_follows_ttin_and_ttou_and_never_falls_below_one() -> None:
    pool = serving()
    (more,) = spawns(pool.send(SignalReceived("TTIN")))
    pool.send(WorkerReady(more.worker, 0.1))
    assert Retire(0) in pool.send(SignalReceived("TTOU"))
    assert Retire(1) in pool.send(SignalReceived("TTOU"))
    assert not [a for a in pool.send(SignalReceived("TTOU")) if isinstance(a, Retire)]


def test_worker_that_is_to_go_may_have_a_successor_which_stays() -> None:
    pool = serving()
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 1)))
    assert Retire(0) in pool.send(SignalReceived("TTOU"))
    assert pool.send(WorkerReady(heir.worker, 0.1))


def test_scaling_down_before_anyone_serves_retires_nobody() -> None:
    pool = Pool()
    assert not [a for a in pool.send(SignalReceived("TTOU")) if isinstance(a, Retire)]
    pool.send(WorkerReady(0, 0.1))
    assert Retire(0) in pool.send(WorkerReady(1, 0.1))


def test_logs_are_reopened_and_other_signals_mean_nothing() -> None:
    pool = serving()
    assert pool.send(SignalReceived("USR1")) == [ReopenLogs()]
    assert pool.send(SignalReceived("WINCH")) == []


def test_late_word_of_the_dead_changes_nothing() -> None:
    pool = serving()
    for event in (
        WorkerReady(99, 0.1),
        WorkerRetiring(99, "x", 1),
        WorkerBootFailed(99, "x", "y"),
        WorkerLeaving(99, 1, 0),
        WorkerExited(99, 0, None),
        ForkFailed(99, "x"),
    ):
        assert pool.send(event) == []


def test_budgets_are_drawn_from_the_whole_range_both_ends_included() -> None:
    config = Config.of(min_reqs_per_child=5, max_reqs_per_child=10)
    drawn = Counter(draw_budget(config, Random(seed)) for seed in range(10_000))
    assert set(drawn) == {5, 6, 7, 8, 9, 10}
    assert draw_budget(Config.of(), Random(1)) == 100
    assert draw_budget(Config.of(max_reqs_per_child=0), Random(1)) is None


@pytest.mark.parametrize(
    ("most", "of", "budgets"), [(100, 4, [100, 75, 50, 25]), (3, 4, [3, 3, 2, 1]), (1, 3, [1, 1, 1]), (7, 1, [7])]
)
def test_workers_that_are_forked_together_share_the_maximum_out(most: int, of: int, budgets: list[int]) -> None:
    pool = Pool(max_workers=of, max_reqs_per_child=most)
    assert [spawn.budget for spawn in spawns(pool.done)] == budgets


def test_successors_that_come_one_by_one_have_the_whole_maximum() -> None:
    pool = serving(max_workers=4)
    for worker in range(4):
        (heir,) = spawns(pool.send(WorkerRetiring(worker, "max_requests", 1)))
        assert heir.budget == 100


def test_workers_that_a_signal_replaces_together_are_spread_again() -> None:
    assert [spawn.budget for spawn in spawns(serving().send(SignalReceived("USR2")))] == [100, 50]


# Who does not answer.


def deaf(pool: Pool, worker: int) -> Emit:
    """Let a worker become deaf, and time go by until it is noticed; return the record."""
    pool.deaf.add(worker)
    while not pool.records("worker.unresponsive"):
        tick_if_due(pool)
    (record,) = pool.records("worker.unresponsive")
    assert record.worker == worker
    return record


def test_whoever_serves_is_looked_at_and_nobody_who_answers_is_replaced() -> None:
    pool = serving(heartbeat_timeout=60)
    for _ in range(50):
        tick_if_due(pool)
    looks = [action.worker for action in pool.done if isinstance(action, Look)]
    assert looks.count(0) == looks.count(1) == 50  # together, so that the parent sleeps in between
    assert not pool.records("worker.unresponsive")
    assert pool.now - 100.0 >= 49 * 30


def test_who_is_to_show_its_stack_is_not_pinged_as_it_does() -> None:
    pool = serving(heartbeat_timeout=60)
    deaf(pool, 0)
    looked_at = [action for action in pool.done if isinstance(action, Look | Ping | Examine) and action.worker == 0]
    assert looked_at[-2:] == [Look(0), Examine(0)]
    assert looked_at[:-2] == [Look(0), Ping(0)] * (len(looked_at) // 2 - 1)


def test_who_does_not_answer_is_killed_when_its_successor_serves() -> None:
    pool = serving(heartbeat_timeout=60)
    record = deaf(pool, 0)
    assert record.fields["silent_s"] >= 60
    assert record.fields["stack"] == "in compiled code"
    heir = spawns(pool.done)[-1].worker
    assert Kill(0) not in pool.done
    assert Kill(0) in pool.send(WorkerReady(heir, 0.1))
    assert not spawns(pool.exit(0, None, "SIGKILL", after=0.1))
    (gone,) = pool.records("worker.exited")
    assert (gone.fields["reason"], gone.fields["expected"]) == ("unresponsive", False)


def test_who_does_not_answer_is_killed_without_a_successor_if_none_comes_in_time() -> None:
    pool = serving(heartbeat_timeout=60, boot_timeout=10)
    deaf(pool, 0)
    heir = spawns(pool.done)[-1].worker
    assert not [action for action in pool.send(Tick(), after=9.0) if isinstance(action, Kill)]
    assert {Kill(0), Kill(heir)} <= {action for action in pool.send(Tick(), after=1.0) if isinstance(action, Kill)}


def test_who_retires_and_does_not_answer_is_killed_at_once() -> None:
    pool = serving(heartbeat_timeout=60)
    (heir,) = spawns(pool.send(WorkerRetiring(0, "max_requests", 75)))
    pool.send(WorkerReady(heir.worker, 0.1))
    deaf(pool, 0)
    assert Kill(0) in pool.done
    pool.exit(0, None, "SIGKILL")
    assert pool.records("worker.exited")[0].fields["reason"] == "max_requests"


def test_who_answers_again_before_its_successor_serves_is_replaced_but_not_killed() -> None:
    pool = serving(heartbeat_timeout=60)
    deaf(pool, 0)
    pool.deaf.clear()
    for _ in range(2):
        tick_if_due(pool)
    assert Retire(0) in pool.send(WorkerReady(spawns(pool.done)[-1].worker, 0.1))
    assert Kill(0) not in pool.done


def test_a_pool_that_stops_looks_at_nobody() -> None:
    pool = serving(heartbeat_timeout=60)
    pool.deaf.add(0)
    for _ in range(5):
        tick_if_due(pool)
    pool.send(SignalReceived("TERM"))
    before = len(pool.done)
    pool.send(Tick(), after=29.0)
    assert pool.send(WorkerExamined(0, stopped=True, stack="")) == []
    assert pool.send(WorkerPulse(7, pool.now, 0.0, 0, serving=False)) == []
    assert pool.done[before:] == []


def leave_alone(pool: Pool) -> None:
    """Let time go by, with workers that start, leave and die as they are told."""
    deadline = pool.machine.next_deadline
    if deadline is not None and not any(worker.life is Life.STARTING for worker in pool.machine.workers.values()):
        pool.send(Tick(), max(0.0, deadline - pool.now))
    for worker in list(pool.machine.workers.values()):
        if worker.killed:
            pool.exit(worker.worker, None, "SIGKILL")
        elif worker.life is Life.STARTING:
            pool.send(WorkerReady(worker.worker, 0.1))
        elif worker.life is Life.RETIRING:
            pool.exit(worker.worker)


STEPS = st.tuples(
    st.sampled_from(
        [
            "ready",
            "retiring",
            "exit",
            "crash",
            "wave",
            "tick",
            "fork",
            "boot",
            "leaving",
            "HUP",
            "USR1",
            "USR2",
            "TTIN",
            "TTOU",
            "deaf",
            "hears",
        ]
    ),
    st.integers(0, 9),
    st.floats(0, 40),
)
ENDS = st.sampled_from(["TERM", "QUIT", "INT", "changed"])


def happen(pool: Pool, what: str, which: int, after: float) -> None:
    worker = sorted(pool.alive)[which % len(pool.alive)] if pool.alive else 0
    match what:
        case "ready":
            pool.send(WorkerReady(worker, 0.1), after)
        case "retiring":
            pool.send(WorkerRetiring(worker, "max_requests", 1), after)
        case "leaving":
            pool.send(WorkerLeaving(worker, 7, 0), after)
        case "boot":
            pool.send(WorkerBootFailed(worker, "ValueError: x", "Traceback"), after)
        case "exit" | "crash" if pool.alive:
            pool.exit(worker, 0 if what == "exit" else 1, None, after)
        case "wave":
            for each in sorted(pool.alive):
                pool.exit(each, None, "SIGKILL")
        case "fork" if pool.alive and pool.machine.workers[worker].life is Life.STARTING:
            pool.alive.pop(worker)
            pool.refused += 1
            pool.send(ForkFailed(worker, "EAGAIN"), after)
        case "TERM" | "QUIT" | "INT" | "HUP" | "USR1" | "USR2" | "TTIN" | "TTOU":
            pool.send(SignalReceived(what), after)
        case "deaf":
            pool.deaf.add(worker)
        case "hears":
            pool.deaf.clear()
        case "changed":
            pool.send(FilesChanged("shop.py"), after)
        case _:
            pool.send(Tick(), after)


def tick_if_due(pool: Pool) -> None:
    deadline = pool.machine.next_deadline
    if deadline is not None:
        pool.send(Tick(), max(0.0, deadline - pool.now))
        later = pool.machine.next_deadline
        assert later is None or later > pool.now  # no busy loop


def every_worker_exits_once(pool: Pool) -> None:
    refused = (
        sum(isinstance(action, Spawn) for action in pool.done) - len(pool.alive) - len(pool.records("worker.exited"))
    )
    assert refused == pool.refused
    assert set(Counter(emit.worker for emit in pool.records("worker.exited")).values()) <= {1}


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_whatever_happens_the_pool_keeps_its_promises(steps: list[tuple[str, int, float]]) -> None:
    pool = serving(max_workers=3, heartbeat_timeout=20)
    most = 3
    for what, which, after in steps:
        happen(pool, what, which, after)
        counted = [w for w in pool.machine.workers.values() if w.life in COUNTED and w.successor_of is None]
        wanted = pool.machine._wanted
        assert len(counted) <= max(wanted, most)
        assert len([w for w in pool.machine.workers.values() if w.life is Life.SERVING]) <= wanted
        assert set(pool.alive) == set(pool.machine.workers)
        tick_if_due(pool)
        most = len([w for w in pool.machine.workers.values() if w.life in COUNTED and w.successor_of is None])
    pool.deaf.clear()
    for _ in range(30):
        leave_alone(pool)
    assert [w.life for w in pool.machine.workers.values()] == [Life.SERVING] * pool.machine._wanted
    every_worker_exits_once(pool)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3), st.lists(STEPS, max_size=15), ENDS, st.lists(st.tuples(STEPS, st.none() | ENDS), max_size=15))
def test_whenever_it_is_stopped_the_pool_forks_no_more_and_ends(
    ready: int, before: list[tuple[str, int, float]], end: str, after: list[tuple[tuple[str, int, float], str | None]]
) -> None:
    pool = Pool(max_workers=3, heartbeat_timeout=20)
    for worker in range(ready):
        pool.send(WorkerReady(worker, 0.1))
    for step in before:
        happen(pool, *step)
    happen(pool, end, 0, 0.1)
    forked = len(spawns(pool.done))
    for step, again in after:
        happen(pool, *step)
        if again is not None:
            happen(pool, again, 0, 0.3)
        tick_if_due(pool)
    for _ in range(10):
        tick_if_due(pool)
        for worker in [w.worker for w in pool.machine.workers.values() if w.killed]:
            pool.exit(worker, None, "SIGKILL")
    assert pool.machine.finished
    assert not pool.alive
    assert len(spawns(pool.done)) == forked
    assert sum(isinstance(action, Finish) for action in pool.done) == 1
    every_worker_exits_once(pool)


# Another generation.


def test_a_superseded_pool_retires_all_and_ends_when_it_is_empty() -> None:
    pool = serving(heartbeat_timeout=0)
    assert pool.send(Superseded(2)) == [
        Emit("pool.superseded", {"new_generation": 2}),
        LeaveListeners(),
        Retire(0),
        Retire(1),
    ]
    assert pool.machine.next_deadline is None, "nothing presses"
    assert pool.send(WorkerRetiring(1, "max_requests", 75)) == []
    (exited,) = pool.exit(0, after=1000)
    assert isinstance(exited, Emit)
    assert (exited.fields["expected"], exited.fields["reason"]) == (True, "deploy")
    assert pool.exit(1)[-1] == Finish(0)


def test_a_generation_that_came_to_nothing_leaves_without_a_word() -> None:
    assert serving().send(Superseded(None)) == [LeaveListeners(), Retire(0), Retire(1)]


@pytest.mark.parametrize("name", ["HUP", "USR2", "TTIN", "TTOU"])
def test_nothing_is_forked_for_a_superseded_pool(name: str) -> None:
    pool = serving()
    pool.send(Superseded(2))
    assert pool.send(SignalReceived(name)) == pool.send(FilesChanged("shop.py")) == pool.send(Superseded(3)) == []
    assert not spawns(pool.exit(0, signal="SIGKILL", code=None))


@pytest.mark.parametrize("delay", [0, 5])
def test_a_superseded_pool_stops_like_any_other(delay: float) -> None:
    pool = serving(stop_delay=delay)
    pool.send(Superseded(2))
    assert pool.send(SignalReceived("TERM"))[-2:] == [Stop(0, quick=False), Stop(1, quick=False)]
    pool.exit(0)
    assert pool.exit(1)[-1] == Finish(0)


def test_who_still_starts_in_a_superseded_pool_goes_when_it_has_started() -> None:
    pool = Pool(boot_timeout=10, heartbeat_timeout=0)
    pool.send(WorkerReady(0, 0.01))
    assert Retire(1) in pool.send(Superseded(2))
    assert pool.send(WorkerReady(1, 0.01)) == []
    assert pool.machine.next_deadline is None
    assert pool.send(Tick(), after=20) == []


def test_who_fails_to_start_in_a_superseded_pool_is_not_replaced() -> None:
    pool = Pool()
    pool.send(Superseded(2))
    assert pool.send(WorkerBootFailed(0, "no shop", "Traceback")) == []
    assert pool.send(ForkFailed(1, "EAGAIN")) == []
    pool.alive.pop(1)
    assert pool.exit(0, code=1)[-1] == Finish(0)


def test_an_empty_pool_that_is_superseded_is_at_its_end() -> None:
    pool = Pool(max_workers=1)
    pool.exit(0, code=1)
    pool.exit(max(pool.alive), code=1)
    assert pool.send(Superseded(2))[-1] == Finish(0)


def test_a_pool_may_be_asked_for_another_number_of_workers() -> None:
    machine = Supervisor(Config.of(max_workers=2), Random(1), 5)
    assert len(spawns(machine.start(0))) == machine.workers_wanted == 5


@pytest.mark.parametrize(
    ("keeper", "note"),
    [(None, "new code needs the option redeploy, or a restart"), (7, "for new code send HUP to 7")],
)
def test_hup_that_replaces_workers_alone_says_how_to_have_new_code(keeper: int | None, note: str) -> None:
    machine = Supervisor(Config.of(max_workers=1), Random(1), keeper=keeper)
    machine.start(0)
    machine.handle(WorkerReady(0, 0.1), 1)
    recycling = machine.handle(SignalReceived("HUP"), 2)[0]
    assert isinstance(recycling, Emit)
    assert recycling.fields["note"] == f"the workers are replaced; {note}"
