"""The pictures of docs/ show what is so."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
_DRAW: dict[str, Any] = runpy.run_path(str(_FOLDER / "draw.py"))


@pytest.mark.parametrize("name", _DRAW["PICTURES"])
def test_a_picture_is_drawn_anew_when_what_it_shows_changes(name: str) -> None:
    """The layers are those of import-linter. Mend it by `python docs/pictures/draw.py`."""
    assert (_FOLDER / name).read_text(encoding="utf-8") == str(_DRAW["PICTURES"][name]())
