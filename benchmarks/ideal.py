#!/usr/bin/env python3
"""What could be had at best: one queue for all threads of all workers, first come, first served.

    python ideal.py [THREADS [CONNECTIONS [SECONDS]]]     the suite `fairness`, without a server

A pure model: the same clients as in lab.py (each asks again when it has its answer, and each tenth time for what takes
200 ms), threads that are never idle while somebody waits, and nothing that costs time but the application.
"""

import heapq
import sys
from collections import deque


def simulate(threads=16, connections=64, seconds=5.0, slow=0.2, fast=0.0, every=10):
    """Return rate, median and 99th percentile of the fast ones, and the median of the slow ones, in seconds."""
    free, queue, done = threads, deque(), []  # done: (time, order, connection, whether slow, when asked)
    sent = [0] * connections
    answered, order, now = {True: [], False: []}, 0, 0.0

    def ask(connection):
        sent[connection] += 1
        queue.append((connection, (sent[connection] + connection) % every == 0, now))

    for connection in range(connections):
        ask(connection)
    while True:
        while free and queue:
            connection, is_slow, asked = queue.popleft()
            free, order = free - 1, order + 1
            heapq.heappush(done, (now + (slow if is_slow else fast), order, connection, is_slow, asked))
        now, _, connection, is_slow, asked = heapq.heappop(done)
        if now > seconds:
            break
        free += 1
        answered[is_slow].append(now - asked)
        ask(connection)
    quick, lame = sorted(answered[False]), sorted(answered[True])
    return {
        "rps": (len(quick) + len(lame)) / seconds,
        "p50": quick[len(quick) // 2],
        "p99": quick[len(quick) * 99 // 100],
        "slow50": lame[len(lame) // 2],
    }


if __name__ == "__main__":
    threads, connections, seconds = [int(a) for a in sys.argv[1:]] + [16, 64, 5][len(sys.argv) - 1 :]
    found = simulate(threads, connections, float(seconds), fast=0.0002)
    print(f"{threads} threads, {connections} connections: {found['rps']:.0f} a second, ", end="")
    print(
        ", ".join(
            f"{name} {found[key] * 1000:.0f} ms"
            for name, key in [("fast p50", "p50"), ("fast p99", "p99"), ("slow p50", "slow50")]
        )
    )
