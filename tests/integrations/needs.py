"""The packages that these tests are about."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest

#: "required": a package that is not there is a failure, not a skip.
REQUIRED = "ALLSWELL_INTEGRATIONS"


def needed(package: str) -> Any:
    """The package; the test (or the file) is skipped where it is not installed."""
    if os.environ.get(REQUIRED) == "required":
        return import_module(package)
    return pytest.importorskip(package)
