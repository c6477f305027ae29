"""Serves ASGI applications from one event loop."""
