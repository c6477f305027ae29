"""What is a small Django project, as it lies on the disk and is served?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from server_process import LiveServer

if TYPE_CHECKING:
    from pathlib import Path

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""

SETTINGS = """
from pathlib import Path
SECRET_KEY = "x" * 50
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
STATIC_URL = "static/"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.staticfiles", "prefork.contrib.django"]
STATICFILES_DIRS = [Path(__file__).parent / "files"]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).parent / "db.sqlite3", "CONN_MAX_AGE": None,
}}
"""

URLS = """
import os
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.urls import path

IMPORTED_IN = os.getpid()

def hello(request):
    return HttpResponse("hello")

def broken(request):
    raise ZeroDivisionError("the view is broken")

def database(request):
    had = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("select 40 + 2")
        return JsonResponse({"answer": cursor.fetchone()[0], "had": had})

def place(request):
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    return JsonResponse({
        "pid": os.getpid(), "imported_in": IMPORTED_IN, "databases": sum("sqlite3" in name for name in opened),
    })

def download(request):
    from django.http import FileResponse
    return FileResponse(open(__file__, "rb"))

urlpatterns = [path("download", download), path("", hello), path("broken", broken), path("db", database), path("place", place)]
"""


def write_project(folder: Path, settings: str = "", urls: str = "") -> Path:
    """Write the project, with more settings and more code behind its views; return the folder."""
    (folder / "manage.py").write_text(MANAGE)
    (folder / "settings.py").write_text(SETTINGS + settings)
    (folder / "urls.py").write_text(URLS + urls)
    (folder / "files").mkdir()
    (folder / "files" / "shop.css").write_text("body {}")
    return folder


def runprefork(folder: Path, *flags: str, address: str | None = "127.0.0.1:0", **where: Any) -> LiveServer:
    """Return the project's server, with two workers, on a port that is free."""
    at = () if address is None else (address,)
    command = (sys.executable, "manage.py", "runprefork", *at, "--workers", "2", *flags)
    return LiveServer(*command, cwd=folder, **where)
