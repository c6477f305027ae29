"""The WSGI side of the conformance kit: an echo app and a few paths that misbehave on purpose.

Any path answers with JSON that says what the app saw. The first path segment selects another behaviour:
/stream  three pieces without a Content-Length     /early  answers without touching the body
/empty   204 without a body                        /unmodified  304 without a body
/raise   raises before start_response              /broken  raises after the first piece
/reset   205 with a body                           /interim  103 as if it were the response
/hints   103 ahead of the response, where the interface has hints
/short   declares 10 octets, gives 9               /long   declares 9 octets, gives 10

`checked` is the same app behind wsgiref.validate, which answers 500 where the server breaks PEP 3333.
"""

import base64
import hashlib
import json
import os
import wsgiref.validate

CALLS = os.environ.get("CONFORMANCE_CALLS")


def note(method, path):
    """Append one line per call, so that the replayer can tell whether a refused request reached the app."""
    if CALLS:
        with open(CALLS, "ab", buffering=0) as f:
            f.write(json.dumps([method, path]).encode() + b"\n")


def field_name(key):
    return key.removeprefix("HTTP_").replace("_", "-").lower()


def echo(environ, path):
    body = b"".join(iter(lambda: environ["wsgi.input"].read(65536), b""))
    return {
        "interface": "wsgi",
        "method": environ["REQUEST_METHOD"],
        "path": path,
        "target": environ.get("RAW_URI") or environ.get("REQUEST_URI"),
        "query": environ.get("QUERY_STRING", ""),
        "protocol": environ["SERVER_PROTOCOL"],
        "headers": [
            [field_name(k), v]
            for k, v in environ.items()
            if k.startswith("HTTP_") or k in ("CONTENT_TYPE", "CONTENT_LENGTH") and v
        ],
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "body": base64.b64encode(body).decode() if len(body) <= 8192 else None,
    }


def broken():
    yield b"first piece\n"
    raise RuntimeError("deliberate failure in the middle of a response")


def app(environ, start_response):
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    note(environ["REQUEST_METHOD"], path)
    plain = [("Content-Type", "text/plain")]
    match path.split("/")[1:2]:
        case ["stream"]:
            start_response("200 OK", plain)
            return iter([b"one\n", b"two\n", b"three\n"])
        case ["early"]:
            start_response("200 OK", [*plain, ("Content-Length", "6")])
            return [b"early\n"]
        case ["empty"]:
            start_response("204 No Content", [])
            return []
        case ["unmodified"]:
            start_response("304 Not Modified", [("ETag", '"x"')])
            return []
        case ["reset"]:
            start_response("205 Reset Content", plain)
            return [b"nothing of this\n"]
        case ["interim"]:
            start_response("103 Early Hints", plain)
            return [b"nothing of this\n"]
        case ["hints"]:
            if "wsgi.early_hints" in environ:
                environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
            start_response("200 OK", [*plain, ("Content-Length", "7")])
            return [b"hinted\n"]
        case ["raise"]:
            raise RuntimeError("deliberate failure before the response")
        case ["broken"]:
            start_response("200 OK", plain)
            return broken()
        case ["short"]:
            start_response("200 OK", [*plain, ("Content-Length", "10")])
            return [b"123456789"]
        case ["long"]:
            start_response("200 OK", [*plain, ("Content-Length", "9")])
            return [b"123456789X"]
    answer = json.dumps(echo(environ, path)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


checked = wsgiref.validate.validator(app)
