"""How is a Django project served by ``manage.py runprefork``?"""

from __future__ import annotations

if __name__ == "django":
    raise ImportError("this is prefork.contrib.django: run from the repository root, not from contrib/")
