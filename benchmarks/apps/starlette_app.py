"""Starlette with one JSON route and no middleware of its own."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


async def hello(request):
    return JSONResponse({"hello": "world", "path": request.url.path})


app = Starlette(routes=[Route("/", hello)])
