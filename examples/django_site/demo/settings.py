"""What a project needs to run under `manage.py runprefork`: one line in INSTALLED_APPS. PREFORK is optional."""

from __future__ import annotations

import os

SECRET_KEY = "only for this example"
DEBUG = os.environ.get("DEBUG", "1") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["prefork.contrib.django"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "demo.urls"
WSGI_APPLICATION = "demo.wsgi.application"
USE_TZ = True

PREFORK = {"MAX_WORKERS": 2}
