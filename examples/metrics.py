"""Metrics of all workers together, with prometheus_client:

mkdir -p /tmp/metrics
PROMETHEUS_MULTIPROC_DIR=/tmp/metrics prefork metrics:app --app-dir examples --worker-started metrics:take_place
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prefork import Worker

process = {"place": "parent"}
values.ValueClass = values.MultiProcessValue(lambda: process["place"])  # before the first metric is made

REQUESTS = Counter("shop_requests", "Requests that were answered.")
RUNNING = Gauge("shop_running", "Requests that are being answered.", multiprocess_mode="livesum")


def take_place(worker: Worker) -> None:
    """Go on with the files of the worker that had this number before; but what ran in there does not run any more."""
    process["place"] = f"{os.getppid()}-{worker.number}"
    mark_process_dead(process["place"])


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [generate_latest(registry)]
    with RUNNING.track_inprogress():
        REQUESTS.inc()
        if environ["PATH_INFO"] == "/crash":
            os.abort()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"Hello\n"]
