"""How much memory is a process's own, and when is it looked at?"""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING

import pytest

from prefork import memory
from prefork.config import Config
from prefork.errors import ConfigError
from prefork.memory import TOLD, Scales, private_memory

if TYPE_CHECKING:
    from pathlib import Path

ROLLUP = b"""\
55d0c0a4e000-7ffd0b5f2000 ---p 00000000 00:00 0                          [rollup]
Rss:               18520 kB
Pss:                9002 kB
Shared_Clean:       9000 kB
Shared_Dirty:        500 kB
Private_Clean:        20 kB
Private_Dirty:      9000 kB
Private_Hugetlb:       0 kB
Swap:                  4 kB
SwapPss:               4 kB
"""


class World:
    """A process of some size, on clocks of its own, that takes some time and some CPU to be weighed."""

    def __init__(self) -> None:
        self.now, self.size, self.looks, self.effort, self.delay, self.used = 100.0, 0, 0, 0.0, 0.0, 3.0
        self.scales = Scales(lambda: self.now, self.weigh, lambda: self.used)

    def weigh(self) -> int:
        self.looks += 1
        self.used += self.effort
        self.now += self.effort + self.delay
        return self.size


def test_private_pages_and_what_of_them_was_swapped_out_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rollup").write_bytes(ROLLUP)
    assert private_memory(tmp_path / "rollup") == (20 + 9000 + 4) * 1024
    assert private_memory(tmp_path / "nowhere") == 0


@pytest.mark.skipif(not TOLD.exists(), reason="this system does not tell")
def test_what_this_process_takes_is_its_own() -> None:
    before = private_memory()
    # Not from the heap, which may still have as much of what was given back.
    with mmap(-1, 20_000_000, MAP_PRIVATE | MAP_ANONYMOUS) as taken:
        taken.write(b"x" * 20_000_000)
        assert private_memory() - before > 15_000_000


def test_a_process_that_works_is_weighed_each_second() -> None:
    world = World()
    for _ in range(1000):  # two seconds in the ticks of a monitor
        assert world.scales.look(2) == 2
        world.now += 0.002
    assert world.looks == 2


def test_a_process_is_weighed_once_more_after_its_work_and_then_left_alone() -> None:
    world = World()
    world.scales.look(2)
    world.now, world.size = world.now + 0.25, 7
    assert world.scales.look(None) == 750
    assert world.scales.private == 0
    world.now += 0.75
    assert world.scales.look(None) is None
    assert world.scales.private == 7
    world.now += 100
    assert world.scales.look(None) is None
    assert world.looks == 2


def test_an_idle_process_is_not_weighed() -> None:
    world = World()
    assert world.scales.look(None) is None
    assert world.looks == 0


def test_looks_that_take_long_are_rare() -> None:
    world = World()
    world.effort = 0.05
    world.scales.look(2)
    began = world.now - 0.05
    while world.looks == 1:
        world.now += 0.1
        world.scales.look(2)
    assert world.now - began >= 5.0


def test_a_look_that_had_to_wait_for_the_processor_does_not_put_off_the_next_one() -> None:
    world = World()
    world.delay = 0.5
    world.scales.look(2)
    world.now, world.size = world.now + 1.0, 7
    world.scales.look(2)
    assert world.scales.private == 7


def test_a_limit_on_a_system_that_does_not_tell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TOLD", tmp_path / "nowhere")
    assert Config.of(max_memory=0).max_memory == 0
    with pytest.raises(ConfigError, match="max_memory is 104857600: this system does not tell"):
        Config.of(max_memory="100M")
