"""What does it cost to replace a worker, above a bare fork and exit of the same image?

    python benchmarks/recycle_cost.py [flaskapp:app] [rounds]

One pool of one worker replaces it again and again (USR2, at the next record of an exit). CPU of the parent and of all its
children is counted, and so is that of os.fork() and os._exit() in the same process, with the same image.
"""

import gc
import os
import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "apps"))

from prefork import WorkerPool

APP = sys.argv[1] if len(sys.argv) > 1 else "flaskapp:app"
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 200
PARENT = os.getpid()
exits = 0
began = bare = []


def cpu():
    """Return milliseconds and page faults of this process and of its children, over the rounds of a measure."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [number / ROUNDS for one in used for number in ((one.ru_utime + one.ru_stime) * 1e3, one.ru_minflt)]


def since(start):
    return [now - before for before, now in zip(start, cpu())]


def fork_and_exit():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def hook(name, fields):
    global exits, began, bare
    if os.getpid() != PARENT:
        return
    if name == "pool.ready":
        gc.collect()
        start = cpu()
        for _ in range(ROUNDS):
            fork_and_exit()
        bare = since(start)
        began = cpu()
        os.kill(PARENT, signal.SIGUSR2)
    elif name == "worker.exited":
        exits += 1
        if exits == ROUNDS:
            each = since(began)
            for what, (own, faults, child, child_faults) in {"recycle": each, "bare fork": bare}.items():
                print(f"{what:9} {own + child:.2f} ms: parent {own:.2f} ms and {faults:.0f} page faults, ", end="")
                print(f"child {child:.2f} ms and {child_faults:.0f} page faults")
            print(f"above     {each[0] + each[2] - bare[0] - bare[2]:.2f} ms")
        os.kill(PARENT, signal.SIGUSR2 if exits < ROUNDS else signal.SIGTERM)


if __name__ == "__main__":
    WorkerPool(
        APP,
        app_dir=str(Path(__file__).parent / "apps"),
        bind="127.0.0.1:0",
        max_workers=1,
        log_format="none",
        on_record=hook,
    ).serve()
