"""The table of the docs is what the witness sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testing.clients import Get, by_aiohttp, by_allswell, by_curl_cffi, by_httpx2, by_niquests
from tests.testing.table import HEAD, rows, there

_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "testing.md"


def without_release(row: str) -> str:
    """``| httpx2 2.16.2 | …`` without the number."""
    name, rest = row.removeprefix("| ").split(" | ", 1)
    return f"| {name.split()[0]} | {rest}"


@pytest.mark.parametrize(
    "get", [by_allswell, by_httpx2, by_aiohttp, by_niquests, by_curl_cffi], ids=lambda each: each.__name__
)
def test_the_table_of_the_docs(get: Get) -> None:
    """Not curl's rows: they are another on each machine, as its release and its TLS library are."""
    if not there(get):
        pytest.skip("not installed")
    page = _PAGE.read_text()
    assert HEAD in page
    told = [without_release(line) for line in page.splitlines() if line.startswith("| ") and " | HTTP/" in line]
    for row in rows(get):
        assert without_release(row) in told
