"""What does ``python -m prefork`` do? The same as ``prefork``."""

from __future__ import annotations

import sys

from prefork.heap import collecting_seldom


def main() -> int:
    """Run the command; return its exit status (see ``prefork.cli``)."""
    with collecting_seldom():
        from prefork.cli import main as command
        from prefork.farewell import leave_threads
    status = command()
    leave_threads(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
