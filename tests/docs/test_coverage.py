"""The README's figure of how many lines the tests run is the one that `make coverage` insists on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_names_the_figure_that_is_checked() -> None:
    report = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["report"]
    stated = re.search(r"(\d+) % of (?:its|the) lines", (ROOT / "README.md").read_text())
    assert (int(stated[1]) if stated is not None else None) == report.get("fail_under")
