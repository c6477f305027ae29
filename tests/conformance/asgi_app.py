"""The ASGI side of the conformance kit: the same paths as wsgi_app.py."""

import base64
import hashlib
import json

from wsgi_app import note


async def read_body(receive):
    """The whole body, or None when the client went away before its end."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def echo(scope, path, body):
    raw = scope.get("raw_path")
    return {
        "interface": "asgi",
        "method": scope["method"],
        "path": path,
        "target": raw.decode("latin-1") if raw is not None else None,
        "query": scope["query_string"].decode("latin-1"),
        "protocol": "HTTP/" + scope["http_version"],
        "headers": [[k.decode("latin-1"), v.decode("latin-1")] for k, v in scope["headers"]],
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "body": base64.b64encode(body).decode() if len(body) <= 8192 else None,
    }


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path = scope["path"].encode("utf-8", "surrogateescape").decode("latin-1")
    note(scope["method"], path)

    async def start(status, *headers):
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(data=b"", more=False):
        await send({"type": "http.response.body", "body": data, "more_body": more})

    plain = (b"content-type", b"text/plain")
    match path.split("/")[1:2]:
        case ["stream"]:
            await start(200, plain)
            for piece in (b"one\n", b"two\n", b"three\n"):
                await body(piece, more=True)
            await body()
        case ["early"]:
            await start(200, plain, (b"content-length", b"6"))
            await body(b"early\n")
        case ["empty"]:
            await start(204)
            await body()
        case ["unmodified"]:
            await start(304, (b"etag", b'"x"'))
            await body()
        case ["reset"]:
            await start(205, plain)
            await body(b"nothing of this\n")
        case ["interim"]:
            await start(103, plain)
            await body(b"nothing of this\n")
        case ["hints"]:
            if "http.response.early_hint" in (scope.get("extensions") or {}):
                await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
            await start(200, plain, (b"content-length", b"7"))
            await body(b"hinted\n")
        case ["raise"]:
            raise RuntimeError("deliberate failure before the response")
        case ["broken"]:
            await start(200, plain)
            await body(b"first piece\n", more=True)
            raise RuntimeError("deliberate failure in the middle of a response")
        case ["short"]:
            await start(200, plain, (b"content-length", b"10"))
            await body(b"123456789")
        case ["long"]:
            await start(200, plain, (b"content-length", b"9"))
            await body(b"123456789X")
        case _:
            data = await read_body(receive)
            if data is None:
                return
            answer = json.dumps(echo(scope, path, data)).encode()
            await start(200, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer)))
            await body(answer)
