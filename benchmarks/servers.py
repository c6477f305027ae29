"""The table of servers: one row each, change it here.

kind      which twin of an app it runs: wsgi, asgi, or a2wsgi (a WSGI app wrapped by a2wsgi, on an ASGI server)
cmd       the command; its first word is a program of the virtual environment.  Filled in: {app} module:callable, {port},
          {workers}, {here} (this folder), {opts} (limit or nolimit, then idle)
needs     modules that must be installed, beside the program
limit     options that recycle a worker after {maxreq} requests (rows without it are left out of `recycle`)
nolimit   options for all other suites
idle      options that let thousands of idle connections stay
workers   it can run several processes
hup       SIGHUP to the first process reloads it
tls       options that let it speak TLS with {cert} and {key} (rows without it are left out of `tls`)
"""

from collections import namedtuple

S = namedtuple("S", "kind cmd needs limit nolimit idle workers hup tls", defaults=("", "", "", "", True, False, ""))

PREFORK = "prefork {app} --bind 127.0.0.1:{port} --max-workers {workers} "


def prefork(extra, needs="prefork httptools", kind="wsgi"):
    return S(
        kind,
        PREFORK + extra + " {opts}",
        needs,
        "--max-reqs-per-child {maxreq}",
        "--max-reqs-per-child 0",
        "",
        True,
        True,
        "--cert {cert} --key {key}",
    )


OURS = {
    "prefork": prefork("--threads 4 --http httptools"),
    "prefork-t1": prefork("--threads 1 --http httptools"),
    "prefork-h11": prefork("--threads 4 --http h11", "prefork"),
    "prefork-asgi": prefork("--http httptools --async-backend uvloop", "prefork httptools uvloop", "asgi"),
    "prefork-asgi-h11": prefork("--http h11 --async-backend asyncio", "prefork", "asgi"),
}

GUNICORN = "gunicorn -b 127.0.0.1:{port} -w {workers} --log-level critical --no-control-socket "
FREEZE = "--preload -c {here}/apps/gunicorn_freeze.py"
UVICORN = "uvicorn --host 127.0.0.1 --port {port} --workers {workers} --no-access-log --log-level critical "
HYPERCORN = "hypercorn -b 127.0.0.1:{port} -w {workers} --log-level critical "
GRANIAN = (
    "granian --host 127.0.0.1 --port {port} --workers {workers} --http 1 --no-ws --log-level critical "
    "--runtime-threads 1 "
)
UWSGI = (
    "uwsgi --master --processes {workers} --module {app} --need-app --disable-logging --die-on-term --listen 1024 "
    "--buffer-size 32768 --logto /dev/null "
)


def gunicorn(extra, kind="wsgi", needs="gunicorn_h1c"):
    return S(
        kind,
        GUNICORN + extra + " {opts} {app}",
        needs,
        "--max-requests {maxreq}",
        "",
        "--keep-alive 75 --worker-connections 10000",
        True,
        True,
        "--certfile {cert} --keyfile {key}",
    )


def uvicorn(extra, kind="asgi", needs=""):
    return S(
        kind,
        UVICORN + extra + " {opts} {app}",
        needs,
        "--limit-max-requests {maxreq}",
        "",
        "--timeout-keep-alive 75",
        True,
        True,
        "--ssl-certfile {cert} --ssl-keyfile {key}",
    )


def hypercorn(extra, kind="asgi", needs="", app="{app}"):
    return S(kind, HYPERCORN + extra + " {opts} " + app, needs, "--max-requests {maxreq}", "", "--keep-alive 75")


def granian(extra, kind):
    return S(
        kind,
        GRANIAN + f"--interface {kind} " + extra + " {opts} {app}",
        idle="--backlog 10000 --backpressure 10000",
        hup=True,
        tls="--ssl-certificate {cert} --ssl-keyfile {key}",
    )


def uwsgi(extra):
    return S("wsgi", UWSGI + extra + " {opts}", "", "--max-requests {maxreq} --min-worker-lifetime 0", hup=True)


def launched(module, kind="wsgi", workers=True):
    return S(kind, "python launch.py " + module + " {app} {port} {workers}", module, workers=workers)


PEERS = {
    # WSGI.  h1c: gunicorn's parser in C; -t4: four threads; bt4: four blocking threads
    "gunicorn-sync": gunicorn("-k sync --http-parser python", needs=""),
    "gunicorn-sync-h1c": gunicorn("-k sync --http-parser fast"),
    "gunicorn-sync-preload": gunicorn("-k sync --http-parser fast --preload"),
    "gunicorn-sync-freeze": gunicorn("-k sync --http-parser fast " + FREEZE),
    "gunicorn-gthread": gunicorn("-k gthread --threads 4 --http-parser python", needs=""),
    "gunicorn-gthread-h1c": gunicorn("-k gthread --threads 4 --http-parser fast"),
    "gunicorn-gthread-preload": gunicorn("-k gthread --threads 4 --http-parser fast --preload"),
    "gunicorn-gthread-freeze": gunicorn("-k gthread --threads 4 --http-parser fast " + FREEZE),
    "gunicorn-gevent": gunicorn("-k gevent --http-parser fast", needs="gunicorn_h1c gevent packaging"),
    "granian-wsgi": granian("--blocking-threads 1", "wsgi"),
    "granian-wsgi-bt4": granian("--blocking-threads 4", "wsgi"),
    "waitress": S(
        "wsgi",
        "waitress-serve --listen=127.0.0.1:{port} --threads=4 {opts} {app}",
        idle="--connection-limit=10000 --asyncore-use-poll",
        workers=False,
    ),
    "cheroot": S(
        "wsgi",
        "cheroot --bind 127.0.0.1:{port} --threads 4 --max-threads 4 {opts} {app}",
        idle="--timeout 75",
        workers=False,
    ),
    "uwsgi-http-socket": uwsgi("--http-socket 127.0.0.1:{port}"),
    "uwsgi-http11": uwsgi("--http11-socket 127.0.0.1:{port}"),
    "uwsgi-http11-t4": uwsgi("--threads 4 --http11-socket 127.0.0.1:{port}"),
    "uwsgi-router": uwsgi("--http 127.0.0.1:{port} --http-keepalive=75 --http-auto-chunked"),
    "uwsgi-router-lazy": uwsgi("--lazy-apps --http 127.0.0.1:{port} --http-keepalive=75"),
    "bjoern": launched("bjoern"),
    "fastpysgi": launched("fastpysgi"),
    "fastwsgi": launched("fastwsgi"),
    "meinheld": launched("meinheld", workers=False),
    "hypercorn-wsgi": hypercorn("", "wsgi", app="wsgi:{app}"),
    "uvicorn-wsgi": uvicorn("--interface wsgi --http httptools --loop uvloop", "wsgi", "httptools uvloop"),
    "uvicorn-a2wsgi": uvicorn("--http httptools --loop uvloop", "a2wsgi", "httptools uvloop a2wsgi"),
    # ASGI
    "uvicorn-h11": uvicorn("--http h11 --loop asyncio"),
    "uvicorn-httptools": uvicorn("--http httptools --loop uvloop", needs="httptools uvloop"),
    "uvicorn-zttp": uvicorn("--http zttp --loop uvloop", needs="zttp uvloop"),
    "gunicorn-asgi": gunicorn("-k asgi --http-parser fast", "asgi"),
    "gunicorn-asgi-preload": gunicorn("-k asgi --http-parser fast --preload", "asgi"),
    "hypercorn": hypercorn(""),
    "hypercorn-uvloop": hypercorn("-k uvloop", needs="uvloop"),
    "granian-asgi": granian("--loop uvloop", "asgi")._replace(needs="uvloop"),
    "granian-asgi-rust": granian("--loop uvloop --task-impl rust", "asgi")._replace(needs="uvloop"),
    "fastpysgi-asgi": launched("fastpysgi", "asgi"),
}

SERVERS = OURS | PEERS
