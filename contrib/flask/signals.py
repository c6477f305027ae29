"""What may a Flask application do at the turns of its pool's life?

Connect to these, as to Flask's own signals. A receiver that raises is recorded (``hook.failed``) and nothing else.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

pool_ready = _signals.signal("prefork.pool_ready")
"""In the parent, when all workers serve. Sender: the application."""
worker_started = _signals.signal("prefork.worker_started")
"""In a worker, before its first request. Sender: the application; ``worker``: a ``prefork.Worker``."""
worker_stopping = _signals.signal("prefork.worker_stopping")
"""In a worker, after its last request. Sender: the application; ``worker``: a ``prefork.Worker``."""
