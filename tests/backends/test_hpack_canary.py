"""What is used of hpack's inner works. A release that changes it fails here first."""

from __future__ import annotations

from hpack.table import HeaderTable

NAMES = {"_current_size", "_maxsize"}


def test_a_table_has_its_sizes_there() -> None:
    table = HeaderTable()
    assert (table._current_size, table._maxsize) == (0, 4096)
    table.maxsize = 40
    table.add(b"a", b"b")
    assert (table._current_size, table._maxsize) == (34, 40)
    table.add(b"c", b"de")
    assert (table._current_size, list(table.dynamic_entries)) == (35, [(b"c", b"de")])
    table.maxsize = 34
    assert (table._current_size, len(table.dynamic_entries)) == (0, 0)
