"""Django with minimal settings: one view, no database, no middleware."""

import asyncio

from django.conf import settings

settings.configure(
    DEBUG=False,
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="djhello",
    MIDDLEWARE=[],
    INSTALLED_APPS=[],
    USE_TZ=True,
)

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


LENGTH = {"Content-Type": "text/plain", "Content-Length": "13"}  # as CommonMiddleware would add


def hello(request):
    return HttpResponse("Hello, World!", headers=LENGTH)


async def ahello(request):
    return HttpResponse("Hello, World!", headers=LENGTH)


async def aslow(request):
    await asyncio.sleep(0.2)
    return HttpResponse("Hello, World!", headers=LENGTH)


urlpatterns = [path("", hello), path("async", ahello), path("aslow", aslow)]
app = get_wsgi_application()
