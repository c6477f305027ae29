"""The Flask app behind a2wsgi's thread pool, for ASGI-only servers (workers: threads of the pool)."""

import os

from a2wsgi import WSGIMiddleware

from flaskapp import app as wsgi_app

app = WSGIMiddleware(wsgi_app, workers=int(os.environ.get("A2WSGI_THREADS", "4")))
