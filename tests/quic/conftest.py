"""Runs of packets have two ways, Python's and the compiled loop's. What is said of them holds for both."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from allswell._quic import native


@pytest.fixture(scope="module", params=["python", "native"])
def loops(request: pytest.FixtureRequest) -> Iterator[ModuleType | None]:
    """New connections take one of both ways; whichever the environment has chosen."""
    found = None if request.param == "python" else request.getfixturevalue("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "loops", found)
        yield found
