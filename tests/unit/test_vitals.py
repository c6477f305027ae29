"""Is what a process leaves behind found, and nothing else?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from prefork.scoreboard import HELD, Row, hold, mark
from prefork.vitals import RECENT_S, OomKills, Vitals, is_stopped

if TYPE_CHECKING:
    from pathlib import Path

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and cgroups are Linux's")


def test_the_evidence_names_what_was_lost() -> None:
    row = Row.alone(cells=2)
    with closing(Vitals(row)) as vitals:
        mark(row.memory, row.cells[1], 7.5, 1, b"GET /a HTTP/1.1", 1)
        hold(row.memory, HELD, 3)
        assert vitals.evidence(row.read(), now=9.0) == {
            "requests_lost": [{"method": "GET", "path": "/a", "age_s": 1.5}],
            "connections_lost": 2,
            "rss_bytes": None,
            "stack": None,
        }


def test_a_row_is_cleared_for_who_gets_it() -> None:
    row = Row.alone(cells=1)
    hold(row.memory, HELD, 3)
    with closing(Vitals(row)) as vitals:
        assert vitals.evidence(row.read(), now=9.0)["connections_lost"] == 0


def test_the_last_words_are_read_from_the_beginning_however_often() -> None:
    with closing(Vitals(Row.alone(1))) as vitals:
        os.write(vitals.last_words, b"Fatal Python error\n")
        assert vitals.stack() == vitals.stack() == "Fatal Python error"


@linux
def test_memory_is_that_of_the_process_and_stays_what_it_was_when_that_is_gone() -> None:
    with closing(Vitals(Row.alone(1))) as vitals:
        vitals.weigh(os.getpid())
        weight = vitals.memory
        assert weight is not None
        assert weight > 2**20
        vitals.weigh(2**31 - 1)
        assert vitals.memory == weight


@linux
def test_a_process_is_stopped_until_it_is_continued() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_stopped(child.pid)
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert is_stopped(child.pid)
    child.kill()
    child.communicate()
    assert not is_stopped(child.pid)


@linux
@pytest.mark.parametrize("path", ["/pod/shop", "/"])
@pytest.mark.parametrize(
    ("groups", "place", "others"),
    [
        ("0::{}\n", "memory.events", "low 0\noom 6\noom_group_kill 0\n"),
        ("5:cpu,cpuacct:/else\n4:memory:{}\n0::/else\n", "memory/memory.oom_control", "under_oom 0\n"),
    ],
    ids=["version 2", "version 1"],
)
def test_oom_kills_are_counted_since_the_last_look(
    tmp_path: Path, path: str, groups: str, place: str, others: str
) -> None:
    proc, fs = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text(groups.format(path))
    counted = fs / place
    counted = counted.parent / path.lstrip("/") / counted.name
    counted.parent.mkdir(parents=True)
    counted.write_text(f"oom_kill 3\n{others}")
    kills = OomKills(proc, fs)
    assert kills.new() == 0
    counted.write_text(f"oom_kill 5\n{others}")
    assert kills.new() == 2
    assert kills.new() == 0


def test_what_was_killed_long_ago_is_no_death_of_now(tmp_path: Path) -> None:
    proc = tmp_path / "cgroup"
    proc.write_text("0::/\n")
    counted = tmp_path / "memory.events"
    counted.write_text("oom_kill 3\n")
    kills = OomKills(proc, tmp_path)
    kills.look(100.0)
    counted.write_text("oom_kill 5\n")
    kills.look(100.0 + RECENT_S)
    assert kills.new() == 2, "that may be of a death which is seen in a moment"
    counted.write_text("oom_kill 6\n")
    kills.look(100.0 + 2 * RECENT_S)
    kills.look(100.1 + 2 * RECENT_S)
    kills.look(100.0 + 3 * RECENT_S)
    assert kills.new() == 0
    counted.write_text("oom_kill 7\n")
    assert kills.new() == 1


def test_where_there_is_no_control_group_nothing_is_counted(tmp_path: Path) -> None:
    assert OomKills(tmp_path / "none", tmp_path).new() == 0
    (tmp_path / "cgroup").write_text("0::/gone\n")
    assert OomKills(tmp_path / "cgroup", tmp_path / "fs").new() == 0


ARRANGED = """
import faulthandler, os, signal, sys, tempfile
from prefork.vitals import arrange_last_words, give_up_last_words, record_last_words

before = tempfile.TemporaryFile()
if "enabled" in sys.argv:
    faulthandler.enable(before)
arrange_last_words()
for _ in range(2):
    words = tempfile.TemporaryFile()
    if os.fork() == 0:
        record_last_words(words.fileno())
        os.kill(os.getpid(), signal.SIGSEGV)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGSEGV
    words.seek(0)
    assert words.read().count(b"Segmentation fault") == 1
give_up_last_words()
assert before.read() == b""
print("enabled" if faulthandler.is_enabled() else "disabled")
"""


@pytest.mark.parametrize("state", ["enabled", "disabled"])
def test_each_child_has_its_own_last_words_and_the_parent_is_left_as_it_was(state: str) -> None:
    command = [sys.executable, "-c", ARRANGED, state]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{state}\n"
