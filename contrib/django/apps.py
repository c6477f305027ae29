"""What does ``INSTALLED_APPS += ["prefork.contrib.django"]`` bring?"""

from __future__ import annotations

from django.apps import AppConfig


class PreforkConfig(AppConfig):
    """The command ``runprefork`` and the system checks."""

    name = "prefork.contrib.django"
    # The default would be "django".
    label = "prefork"
    verbose_name = "prefork"

    def ready(self) -> None:
        """Register the checks."""
        from prefork.contrib.django import checks  # noqa: F401
