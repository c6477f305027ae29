"""Does every code have its section, and every section its code?"""

from __future__ import annotations

import re
from pathlib import Path

from prefork.errors import CODES

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "errors").glob("*.md")))
    assert dict(re.findall(r"^## (PF\d+) (.*)$", pages, flags=re.MULTILINE)) == CODES


def test_every_code_is_provoked_by_a_test_that_names_it() -> None:
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__).resolve()]
    named = {code for path in tests for code in re.findall(r"\bPF\d{3}\b", path.read_text())}
    assert named == set(CODES), "write a test for each code that is missing here; each that is too much is no code"


def test_every_code_in_the_source_is_known_and_every_known_code_is_used() -> None:
    files = [
        path for folder in ("prefork", "contrib") for path in (ROOT / folder).rglob("*.py") if path.name != "errors.py"
    ]
    used = {code for path in files for code in re.findall(r"\bPF\d{3}\b", path.read_text())}
    assert used == set(CODES)
