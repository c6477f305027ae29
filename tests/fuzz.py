"""Is there a request or an answer for which what must hold does not?

    python tests/fuzz.py --seconds 600
    python tests/fuzz.py .fuzz/crash-0123…

Guided by coverage with atheris, beginning with the octets of the conformance kit; without atheris by hypothesis alone. What
is asked of each input is in ``http1_oracle.py``. A finding is a traceback, and with atheris a file in ``.fuzz``: given
here it is tried again. Its place is a row in ``tests/unit/test_http_findings.py``.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".fuzz"
LONGEST = 800
EXAMPLES = 200
ASKED = (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n")
FIELD, PAIR, PIECE = b"\xfe", b"\xfd", b"\xfc"
"""What is between the fields of an answer, between name and value, and before each piece of its body."""


def ask(data: bytes) -> None:
    """Hold what must hold of one input: its first octet says whether it is a request or an answer, and how to take it."""
    from http1_oracle import check_answer, check_request

    if len(data) < 2:
        return
    kind, size, rest = data[0], data[1], data[2:]
    if kind % 2 == 0:
        check_request(rest, [kind // 2 + 1, size + 1])
        return
    head, *pieces = rest.split(PIECE)
    status, *fields = head.split(FIELD)
    pairs = [tuple(part.decode("latin-1") for part in field.partition(PAIR)[::2]) for field in fields]
    check_answer(ASKED[size % len(ASKED)], status.decode("latin-1"), pairs, pieces)  # type: ignore[arg-type]


def seeds() -> Iterator[bytes]:
    """Give inputs to begin with: what the kit sends, and a few answers."""
    for case in json.loads((ROOT / "tests" / "conformance" / "cases.json").read_text()):
        octets = b"".join(_octets(item) for item in case["send"])
        if len(octets) <= LONGEST:
            yield b"\x0c\x02" + octets
    for asked in range(len(ASKED)):
        yield bytes([1, asked]) + b"200 OK" + FIELD + b"Content-Length" + PAIR + b"5" + PIECE + b"hello"
        yield bytes([1, asked]) + b"204 No Content" + FIELD + b"Connection" + PAIR + b"close"
        yield bytes([1, asked]) + b"200 OK" + FIELD + b"Date" + PAIR + b"x" + PIECE + b"he" + PIECE + b"llo"


def _octets(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode("latin-1")
    if "repeat" in item:
        return bytes(item["repeat"].encode("latin-1") * item["times"])
    return base64.b64decode(item["base64"]) if "base64" in item else b""


def guided(seconds: int) -> None:
    """Let atheris look for inputs that reach more of the code; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["prefork.http1", "prefork.wsgi.gateway", "h11"]):
        importlib.import_module("http1_oracle")
    corpus = KEPT / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {"max_total_time": seconds, "max_len": LONGEST, "timeout": 20, "artifact_prefix": f"{KEPT}/"}
    atheris.Setup(
        [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), "-print_final_stats=1", str(corpus)],
        ask,
    )
    atheris.Fuzz()


def unguided(seconds: int) -> None:
    """Ask the properties of the unit tests again and again, each time with other examples."""
    from hypothesis import settings

    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    properties = vars(importlib.import_module("test_http_properties"))
    tests = [test for name, test in properties.items() if name.startswith("test_")]
    for test in tests:
        settings(max_examples=EXAMPLES, deadline=None, database=None)(test)
    end, rounds = time.monotonic() + seconds, 0
    while not rounds or time.monotonic() < end:
        for test in tests:
            test()
        rounds += 1
    print(f"{len(tests)} properties held in {rounds * EXAMPLES} examples each")


def main() -> int:
    """Look for findings, or try files again."""
    parser = argparse.ArgumentParser(description="Look for a request or an answer for which what must hold does not.")
    parser.add_argument("--seconds", type=int, default=900, help="how long to look (900)")
    parser.add_argument(
        "--engine", choices=("auto", "atheris", "hypothesis"), default="auto", help="auto: atheris if it is installed"
    )
    parser.add_argument("files", nargs="*", type=Path, help="inputs to be tried again")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    for file in args.files:
        ask(file.read_bytes())
    if args.files:
        return 0
    if args.engine != "hypothesis" and find_spec("atheris") is not None:
        guided(args.seconds)
    elif args.engine == "atheris":
        print("atheris is not installed: pip install --group fuzz, or --engine hypothesis")
        return 2
    else:
        unguided(args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
