"""What a request costs the pool does not depend on what else it holds: counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.bench.pool_size import warm_request


class Counted(dict[Any, Any]):
    """A dict that counts how often it is gone through as a whole."""

    walks = 0

    def __iter__(self) -> Any:
        Counted.walks += 1
        return super().__iter__()

    def values(self) -> Any:
        Counted.walks += 1
        return super().values()

    def items(self) -> Any:
        Counted.walks += 1
        return super().items()


def steps(function: Callable[[], None]) -> int:
    """How many lines of Python, and calls of C functions, it takes."""
    count = 0

    def trace(frame: object, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "c_call"

    before, profiled = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.settrace(before)
        sys.setprofile(profiled)
    return count


@pytest.mark.parametrize("idle", [100, 10_000])
def test_idle_connections_on_other_routes_cost_nothing(idle: int) -> None:
    alone, crowded = warm_request(1), warm_request(idle)
    alone()
    crowded()
    assert 20 < steps(alone) == steps(crowded) < 300


def test_nothing_walks_over_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """(A walk inside a C function, such as list(), would be one step.)"""
    crowded = warm_request(100)
    cells = {cell.cell_contents for cell in crowded.__closure__ or () if hasattr(cell.cell_contents, "open_now")}
    [dispatcher] = cells
    endings = dispatcher.endings
    for owner, name in ((endings, "connections"), (dispatcher, "_members"), (dispatcher, "_routes")):
        setattr(owner, name, Counted(getattr(owner, name)))
    Counted.walks = 0
    crowded()
    assert Counted.walks == 0
    assert len(list(endings.connections)) == 101
    assert Counted.walks == 1  # it would have been seen
