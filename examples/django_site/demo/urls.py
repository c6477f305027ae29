"""The site's pages."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpRequest

    from prefork import ExitGuard


def hello(request: HttpRequest) -> HttpResponse:
    worker = request.META.get("prefork.worker", "?")
    return HttpResponse(f"Hello from worker {worker}, process {os.getpid()}\n", content_type="text/plain")


def job(request: HttpRequest) -> HttpResponse:
    """Answer now, and work on: the worker goes when the job is done, also if it is replaced or the server stops."""
    guard: ExitGuard = request.META["prefork.exit_guard"]
    guard.begin("job")  # here and not in the thread: the worker might see a free guard between the two
    threading.Thread(target=work, args=(guard,)).start()
    return HttpResponse("accepted\n", status=202, content_type="text/plain")


def work(guard: ExitGuard) -> None:
    try:
        time.sleep(1)  # send a mail, resize a picture
        print("job done", flush=True)
    finally:
        guard.end()


urlpatterns = [path("", hello), path("job", job)]
