"""How is a Django project served by ``manage.py runprefork``?

Add ``"prefork.contrib.django"`` to ``INSTALLED_APPS``; options are in ``PREFORK = {"MAX_WORKERS": 4}``.
"""

from __future__ import annotations

if __name__ == "django":
    raise ImportError("this is prefork.contrib.django: run from the repository root, not from contrib/")
