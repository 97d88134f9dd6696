"""Builds the optional compiled loop (``native/``) as it is shipped, for tests: by its own setup.py, into a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.servers import lacks

_SOURCE = Path(__file__).parents[2] / "native"


def lacking() -> str | None:
    """What this machine lacks to build it; ``None``: nothing."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"the compiled loop cannot be built: there is no {compiler}"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        return f"the compiled loop cannot be built: Python.h is not in {headers} (on Debian: python3-dev)"
    return None


def build(folder: Path) -> Path:
    """Build it in a copy; return the folder that has the package ``allswell_native``.

    :raises AssertionError: when it does not build.
    """
    copy, built = folder / "source", folder / "built"
    shutil.copytree(_SOURCE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has the package; where it cannot be built, tests skip, or fail if servers are required."""
    if why := lacking():
        lacks(why)
    return build(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def compiled(built: Path) -> ModuleType:
    """Its extension. (It is not in ``sys.modules``.)"""
    [path] = (built / "allswell_native").glob("_runs*.so")
    spec = spec_from_file_location("allswell_native._runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
