"""What may a Django project do at the turns of its pool's life?

A receiver that raises is recorded (``hook.failed``) and nothing else. The sender is ``None``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.dispatch import Signal

if TYPE_CHECKING:
    from prefork.records import Records


class PoolSignal(Signal):
    """A signal whose failures are recorded by us, so not logged by Django too."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _log_robust_failure(self, receiver: Any, err: BaseException) -> None:
        pass

    def tell(self, records: Records, **facts: Any) -> None:
        """Call each receiver; one that raises is recorded, and the others are called all the same."""
        for _, answer in self.send_robust(sender=None, **facts):
            if isinstance(answer, BaseException):
                records.emit("hook.failed", hook=self.name, exc_info=answer)


pool_ready = PoolSignal("pool_ready")
"""In the parent, when all workers serve."""
worker_started = PoolSignal("worker_started")
"""In a worker, before its first request; ``worker``: a ``prefork.Worker``."""
worker_stopping = PoolSignal("worker_stopping")
"""In a worker, after its last request; ``worker``: a ``prefork.Worker``."""
