"""Django with a database: each view asks it, waits 5 ms as for an answer from afar, and names its connection."""

import os
import time

from django.conf import settings

settings.configure(
    DEBUG=False,
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="djquery",
    MIDDLEWARE=[],
    INSTALLED_APPS=[],
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "CONN_MAX_AGE": None}},
)

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


def query(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        time.sleep(0.005)
    name = f"{os.getpid()}-{id(connection.connection)}"
    return HttpResponse(name, headers={"Content-Type": "text/plain", "Content-Length": str(len(name))})


urlpatterns = [path("", query)]
app = get_wsgi_application()
