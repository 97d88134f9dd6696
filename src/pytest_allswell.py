"""The pytest plugin of ``allswell.testing``: the fixture ``origin``, and the mark of the same name for its settings.

It is a module of its own, outside the package. pytest imports every plugin that is installed, also where no test uses
it. So it imports :mod:`allswell` only when a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from allswell.testing import Origin


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line("markers", "origin(routes, versions, tls): the settings of the fixture origin, of allswell")


@pytest.fixture
def origin(request: pytest.FixtureRequest) -> Iterator[Origin]:
    """A scripted origin that runs while the test does. ``@pytest.mark.origin(versions=["h2"])`` gives it settings."""
    from allswell.testing import Origin

    mark = request.node.get_closest_marker("origin")
    with Origin(*mark.args, **mark.kwargs) if mark is not None else Origin() as running:
        yield running
