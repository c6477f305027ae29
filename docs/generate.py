"""Which pages of the documentation are made from the code, and are they up to date?

``python docs/generate.py`` writes them; with ``--check`` it names those that differ, and ends with status 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from http_rules import ANSWERS, RULES, Answered, Refusal, Served

from prefork.config import render_options_markdown
from prefork.records import render_records_markdown
from prefork.supervisor import NEXT, Life

DOCS = Path(__file__).resolve().parent

# In the order of their codes: PF1xx, PF2xx …
ERROR_PARTS = ("options", "loading", "listening", "workers", "requests", "adapters")

ERRORS_HEAD = """\
# What does this error mean?

Each error and warning that you can do something about ends with a code in brackets, such as `[PF301]`, or has it in
the field `code` of its record. The code stays the same from version to version. A request that is refused has none: its
`source` names the rule that the client broke. What your application raises has its traceback instead.

Made from `docs/errors/` by `make docs`.
"""


def render_errors_markdown() -> str:
    """Return one page of all codes, joined from a file for each range of codes."""
    parts = [(DOCS / "errors" / f"{name}.md").read_text() for name in ERROR_PARTS]
    return "\n".join([ERRORS_HEAD, *(without_title(part).strip() + "\n" for part in parts)])


def without_title(page: str) -> str:
    """Return the page without its own first-level heading; there is one for the joined page."""
    return re.sub(r"\A\s*# .*\n", "", page)


def render_recycling_markdown() -> str:
    """Return the page on replacements, which is written by hand, with its picture drawn from the supervisor's table."""
    page = (DOCS / "recycling.md").read_text()
    return re.sub(r"(?<=```mermaid\n).*?(?=```)", "\n".join(draw_lives()) + "\n", page, count=1, flags=re.DOTALL)


def draw_lives() -> list[str]:
    """Return the lives of a worker as a state diagram of Mermaid."""
    arrows = [
        f"    {life.name.lower()} --> {after.name.lower()}: {in_words(cause.__name__)}"
        for life, row in NEXT.items()
        for cause, after in row.items()
    ]
    first = next(iter(Life)).name.lower()
    ends = [f"    {life.name.lower()} --> [*]" for life, row in NEXT.items() if not row]
    return ["stateDiagram-v2", f"    [*] --> {first}: spawn", *arrows, *ends]


def render_http_markdown() -> str:
    """Return the page on HTTP, which is written by hand, with its tables made of the rows that the tests run."""
    page = (DOCS / "http.md").read_text()
    for name, rows in RULES.items():
        page = fill(page, name, ["| a client sends | we answer | by |", "|---|---|---|", *map(http_row, rows)])
    return fill(page, "answers", ["| an application gives | we send | by |", "|---|---|---|", *map(http_row, ANSWERS)])


def http_row(row: Refusal | Served | Answered) -> str:
    """Return one rule as a line of a table."""
    return f"| {row.what} | {row.answer} | {row.source} |"


def fill(page: str, name: str, lines: list[str]) -> str:
    """Return the page with ``lines`` at the place that has this name."""
    before, mark, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"http.md has no place for {name}")
    return "\n".join([before + mark, *lines, "", end + after])


def in_words(name: str) -> str:
    """Return the name of a class as words: ``WorkerReady`` is ``worker ready``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


PAGES = {
    "options.md": render_options_markdown,
    "records.md": render_records_markdown,
    "errors.md": render_errors_markdown,
    "recycling.md": render_recycling_markdown,
    "http.md": render_http_markdown,
}


def outdated() -> list[str]:
    """Return the names of the pages that are not what the code says, missing ones included."""
    return [name for name, render in PAGES.items() if not is_current(DOCS / name, render())]


def is_current(page: Path, text: str) -> bool:
    """Return whether the file is there and has this content."""
    return page.is_file() and page.read_text() == text


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description="Write the pages that are made from the code.")
    parser.add_argument("--check", action="store_true", help="compare only; status 1 if a page is out of date")
    stale = outdated()
    if parser.parse_args().check:
        for name in stale:
            print(f"docs/{name} is out of date: run `make docs`")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(PAGES[name]())
        print(f"docs/{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
