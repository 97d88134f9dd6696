"""A server that sends one thing for ever costs a bounded amount of memory, and its request ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.bench.fairness import MEMORY
from tests.bench.hostile import INPUTS


@pytest.mark.parametrize("name", INPUTS)
def test_what_a_hostile_server_makes_us_hold(name: str) -> None:
    """In a process of its own, so that nothing else counts. (Not twice: memory knows no event loop.)"""
    command = [sys.executable, "-m", "tests.bench.fairness", name]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=150).stdout)
    assert told["end"] != "complete"
    assert told["memory"] <= MEMORY
