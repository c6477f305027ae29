"""The site's one page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpRequest


def hello(request: HttpRequest) -> HttpResponse:
    worker = request.META.get("prefork.worker", "?")
    return HttpResponse(f"Hello from worker {worker}, process {os.getpid()}\n", content_type="text/plain")


urlpatterns = [path("", hello)]
