import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "djbig_settings")

from django.core.wsgi import get_wsgi_application  # noqa: E402

app = get_wsgi_application()
import django.urls  # noqa: E402

django.urls.get_resolver().url_patterns  # load the URLconf (and the admin) at import, as a warmed app has
