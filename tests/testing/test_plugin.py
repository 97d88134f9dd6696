"""The pytest plugin: the fixture in sync tests and on every loop, its mark, and what it costs who doesn't use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SRC = Path(__file__).parents[2] / "src"


def run(folder: Path, test: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A user's pytest with the plugin, in a process of its own, which is no worker of ours."""
    (folder / "test_user.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_allswell", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(_SRC)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def test_the_fixture(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
import httpx2
import pytest

def test_sync(origin):
    with httpx2.Client(verify=origin.client_context()) as client:
        assert client.get(origin.url).text == "ok"
    with pytest.raises(AssertionError, match="FIN without close_notify"):
        origin.assert_ended_gracefully()

@pytest.mark.anyio
@pytest.mark.origin(versions=["h2"])
async def test_async(origin):
    import allswell
    async with allswell.AsyncClient(verify=origin.client_context()) as client:
        assert (await client.get(origin.url)).http_version == "HTTP/2"
    await origin.ended()
    origin.assert_ended_gracefully()

@pytest.fixture
def anyio_backend():
    return "trio"
""",
        "--strict-markers",
        "-W",
        "error",
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


def test_a_failure_is_told_without_our_frames(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
def test_user(origin):
    origin.assert_ended_gracefully()
""",
    )
    assert ran.returncode == 1
    assert "there is no connection to judge" in ran.stdout
    assert "_script.py" not in ran.stdout


def test_who_does_not_use_it_does_not_pay(tmp_path: Path) -> None:
    """Nothing of ours is imported, and a fixture of the same name is the user's."""
    ran = run(
        tmp_path,
        """
import sys
import pytest

@pytest.fixture
def origin():
    return "mine"

def test_user(origin):
    assert origin == "mine"
    assert not {"allswell", "anyio", "httpx2", "aioquic", "h2"} & (set(sys.modules) - LOADED)

LOADED = set()
""".replace("LOADED = set()", "LOADED = {'anyio'}  # by its own plugin"),
        "--strict-markers",
        "-W",
        "error",
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_it_is_an_entry_point() -> None:
    """By the name of its module: where it is also named in ``pytest_plugins``, it is registered once."""
    text = (_SRC.parent / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\npytest_allswell = "pytest_allswell"\n' in text


@pytest.mark.parametrize("name", ["src/pytest_allswell.py", "src/allswell"])
def test_the_wheel_holds_it(name: str) -> None:
    assert f'"{name}"' in (_SRC.parent / "pyproject.toml").read_text()
