"""Starts the servers that have no command line for N workers: launch.py SERVER module:app PORT WORKERS"""

import importlib
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
name, target, port, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
module, _, attr = target.partition(":")
app = getattr(importlib.import_module(module), attr)

if name == "bjoern":
    import bjoern

    sock = bjoern.bind_and_listen("127.0.0.1", port)
    if workers == 1:
        bjoern.server_run(sock, app)
    else:
        kids = []
        for _ in range(workers):
            pid = os.fork()
            if pid == 0:
                bjoern.server_run(sock, app)
                os._exit(0)
            kids.append(pid)

        def stop(*_):
            for k in kids:
                os.kill(k, signal.SIGKILL)
            sys.exit(0)

        signal.signal(signal.SIGTERM, stop)
        for k in kids:
            os.waitpid(k, 0)
elif name == "fastpysgi":
    import fastpysgi

    fastpysgi.server.init(app, "127.0.0.1", port, workers=workers)
    fastpysgi.server.run()
elif name == "fastwsgi":
    import warnings

    warnings.simplefilter("ignore")
    import fastwsgi

    fastwsgi.server.init(app, "127.0.0.1", port, workers=workers)
    fastwsgi.server.run()
elif name == "meinheld":
    import meinheld.server

    meinheld.server.listen(("127.0.0.1", port))
    meinheld.server.set_access_logger(None)
    meinheld.server.set_error_logger(None)
    meinheld.server.set_keepalive(75)
    meinheld.server.run(app)
else:
    sys.exit("unknown server " + name)
