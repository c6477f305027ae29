"""Which process is the pool, and what becomes of the file of one that is gone?"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from prefork.errors import BootError
from prefork.pid_file import beginning_of, living_owner, pid_file, read_pid


def test_the_file_is_there_for_the_length_of_the_block_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    with pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_nothing_is_written() -> None:
    with pid_file(None):
        pass


def test_the_file_is_where_it_was_named_although_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pid_file("pool.pid"):
        monkeypatch.chdir("/")
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(BootError) as caught, pid_file(str(path)):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("PF411", 1)
    assert f"{path} belongs to process {os.getppid()}, which is alive" in str(caught.value)
    assert "stop that pool first" in caught.value.hint
    assert read_pid(path) == os.getppid()


def test_the_file_of_a_sibling_is_taken_over_if_siblings_are_generations(tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    with subprocess.Popen(["sleep", "60"]) as sibling, subprocess.Popen(["sleep", "60"]) as newest:
        try:
            path.write_text(f"{sibling.pid}\n")
            with pytest.raises(BootError, match="PF411"), pid_file(str(path), newest.pid):
                pass
            with pid_file(str(path), newest.pid, replaces_sibling=True):
                assert read_pid(path) == newest.pid
            path.write_text(f"{os.getppid()}\n")
            with pytest.raises(BootError, match="PF411"), pid_file(str(path), newest.pid, replaces_sibling=True):
                pass
        finally:
            sibling.kill()
            newest.kill()


@pytest.mark.parametrize(
    "left", ["", "\n", "0", "-1\n", "999999999", "9" * 20, "1\n2\n", "1 server\n", "\0\0\0", "ours"]
)
def test_what_a_dead_process_left_is_replaced(left: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(str(os.getpid()) if left == "ours" else left)
    with pid_file(str(path)):
        assert read_pid(path) == os.getpid()


@pytest.mark.parametrize("content", [b"junk", b"bind = 8000\n" * 1000, b"\xff"])
def test_a_file_that_holds_something_else_is_somebodys_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(BootError, match="holds no process id") as caught, pid_file(str(path)):
        pass
    assert (caught.value.code, caught.value.hint) == ("PF412", "name another file, or remove this one")
    assert path.read_bytes() == content


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BootError, match="PF412"), pid_file(str(tmp_path / "pipe")):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_process_of_another_user_is_alive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(str(os.getppid()))

    def refuse(_pid: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert living_owner(path) == os.getppid()


def test_a_process_that_began_after_the_file_was_written_has_only_its_number(tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(str(os.getppid()))
    os.utime(path, (0, 0))
    assert living_owner(path) is None


@pytest.mark.parametrize("path", ["nowhere/pool.pid", "file/pool.pid", "."])
def test_a_file_that_cannot_be_written_is_told(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BootError) as caught, pid_file(str(tmp_path / path)):
        pass
    assert (caught.value.code, caught.value.exit_code) == ("PF412", 1)
    assert str(tmp_path / path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_copy_of_the_process_leaves_the_file_and_so_does_who_finds_another_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.pid"
    with monkeypatch.context() as child, pid_file(str(path)):
        child.setattr(os, "getpid", lambda: 1)
    assert path.exists()
    with pid_file(str(path)):
        path.write_text("1\n")
    assert read_pid(path) == 1


def test_a_directory_that_refuses_in_the_end_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError

    with pid_file(str(tmp_path / "pool.pid")):
        monkeypatch.setattr(Path, "unlink", refuse)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_beginning_of_a_process_is_known() -> None:
    began = beginning_of(os.getpid())
    assert began is not None
    assert 0 < began <= time.time()
    assert beginning_of(999_999_999) is None
