"""Do the frameworks see the client behind a proxy, with their own remedies and without?"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.test import override_settings
from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

from prefork.config import Config, Limits
from prefork.contrib.flask.options import Given, resolve_options
from prefork.http1.forwarded import Belief
from prefork.http1.heads import HeadReader
from prefork.http1.parser_h11 import H11Parser
from prefork.reception import Origin
from prefork.trust import TrustedProxies
from prefork.wsgi.gateway import Base, request_environ, server_environ

FIELDS = ("X-Forwarded-For: 6.6.6.6, 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example")
ALL = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix")


def environ(*fields: str, trusted: bool = True, **options: Any) -> dict[str, Any]:
    """Return what a framework is given for a request that came through a proxy."""
    config = Config.of(**options)
    shared = server_environ(
        name="127.0.0.1",
        port="8000",
        scheme="http",
        errors=sys.stderr,
        multithread=True,
        root_path=config.root_path,
        extra={},
    )
    belief = Belief(TrustedProxies(config.trusted_proxies), frozenset(map(str.encode, config.forwarded_headers)))
    origin = Origin("http", "127.0.0.1", "8000", trusted)
    base = Base(shared, origin, belief if trusted else None, lambda _names, _address: None)
    head = "".join(f"{field}\r\n" for field in ("Host: 127.0.0.1:8000", *fields, ""))
    asked = HeadReader(Limits(), H11Parser()).read(b"GET /tea HTTP/1.1", head.encode())
    return request_environ(base, ("127.0.0.1", "50000"), asked, None, 0)


def ask_flask(app: Flask, environ: dict[str, Any]) -> tuple[str | None, str]:
    """Return the client and the URL that a view sees."""
    seen: list[tuple[str | None, str]] = []

    @app.route("/tea")
    def tea() -> str:
        seen.append((request.remote_addr, request.url))
        return ""

    list(app.wsgi_app(environ, lambda *_: lambda _: None))
    return seen[0]


@pytest.mark.parametrize("fixed", [False, True])
def test_flask_sees_the_client_with_and_without_proxy_fix(fixed: bool) -> None:
    app = Flask("shop")
    if fixed:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]  # as its documentation says
    given = environ(*FIELDS, forwarded_headers=ALL)
    assert ask_flask(app, given) == ("192.0.2.1", "https://shop.example/tea")


def test_flask_with_proxy_fix_does_not_believe_a_stranger() -> None:
    app = Flask("shop")
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]  # as its documentation says
    assert ask_flask(app, environ(*FIELDS, trusted=False)) == ("127.0.0.1", "http://127.0.0.1:8000/tea")


@pytest.mark.parametrize(
    ("fields", "root_path"),
    [((), "/shop"), (("X-Forwarded-Prefix: /shop",), ""), (("X-Forwarded-Prefix: /shop",), "/x")],
)
def test_flask_makes_urls_under_the_path_where_it_is_mounted(fields: tuple[str, ...], root_path: str) -> None:
    given = environ(*fields, forwarded_headers=ALL, root_path=root_path)
    assert ask_flask(Flask("shop"), given)[1] == "http://127.0.0.1:8000/shop/tea"


def test_flask_has_the_options_in_its_configuration() -> None:
    given = {"PREFORK_TRUSTED_PROXIES": ["10.0.0.0/8"], "PREFORK_ROOT_PATH": "/shop"}
    config = resolve_options(Given(settings=given), debug=False, environ={}).config
    assert (config.trusted_proxies, config.root_path) == (("10.0.0.0/8",), "/shop")


REMEDIES = {"USE_X_FORWARDED_HOST": True, "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}


@pytest.fixture(autouse=True, scope="module")
def django_is_configured() -> None:
    if not settings.configured:
        settings.configure()


@pytest.mark.parametrize("remedies", [{}, REMEDIES])
def test_django_sees_the_client_with_and_without_its_settings(remedies: dict[str, Any]) -> None:
    with override_settings(ALLOWED_HOSTS=["*"], **remedies):
        seen = WSGIRequest(environ(*FIELDS, forwarded_headers=ALL))
        assert seen.is_secure()
        assert seen.build_absolute_uri() == "https://shop.example/tea"
        assert seen.META["REMOTE_ADDR"] == "192.0.2.1"
        assert seen.get_port() == "443"


def test_django_with_its_settings_does_not_believe_a_stranger() -> None:
    with override_settings(ALLOWED_HOSTS=["*"], **REMEDIES):
        seen = WSGIRequest(environ(*FIELDS, trusted=False))
        assert seen.build_absolute_uri() == "http://127.0.0.1:8000/tea"


def test_django_makes_urls_under_the_path_where_it_is_mounted() -> None:
    with override_settings(ALLOWED_HOSTS=["*"]):
        seen = WSGIRequest(environ(root_path="/shop"))
        assert (seen.path, seen.path_info) == ("/shop/tea", "/tea")
