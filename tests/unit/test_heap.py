"""Do new objects lie together although there are holes everywhere?"""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefork.heap import forget_lookups

PAGE = 4096
# In a process of its own: nobody else makes holes meanwhile.
PROGRAM = """
import sys
from prefork.heap import fill_holes

size = int(sys.argv[1])
cheese = [bytes(size) for _ in range(20_000)]
del cheese[::7]
filler = fill_holes() if "filled" in sys.argv else []
made = [bytes(size) for _ in range(500)]
pages = {at // 4096 for it in made for at in range(id(it), id(it) + sys.getsizeof(it), 64)}
print(len(pages), len(filler))
"""


def pages_of_new_objects(size: int, *how: str) -> tuple[int, int]:
    command = [sys.executable, "-c", PROGRAM, str(size), *how]
    pages, filler = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(pages), int(filler)


@pytest.mark.parametrize("size", [20, 100, 400, 1000])
def test_new_objects_lie_together_once_the_holes_are_filled(size: int) -> None:
    least = 500 * size // PAGE
    together, _ = pages_of_new_objects(size, "filled")
    scattered, _ = pages_of_new_objects(size)
    assert together <= 1.6 * least + 8
    assert scattered > 2 * together


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    assert pages_of_new_objects(100, "filled")[1] == 0


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="names are not counted")
def test_a_name_that_was_looked_up_is_let_go_of() -> None:
    name = sys.intern(f"there_is_no_{id(object)}")
    before = sys.getrefcount(name)
    assert not hasattr(object, name)
    forget_lookups()
    assert sys.getrefcount(name) == before
