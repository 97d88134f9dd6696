"""Fixtures that every test shares: each async test runs on asyncio and on trio."""

from __future__ import annotations

import gc
import os
import signal

import hypothesis
import pytest

from tests.support.lag import be_patient
from tests.support.leaks import no_leaked_sockets  # noqa: F401  # a fixture: every test must close what it opened
from tests.support.native import built, compiled  # noqa: F401  # fixtures
from tests.support.ports import closed_port, closed_udp_port  # noqa: F401  # fixtures


def pytest_configure() -> None:
    be_patient()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has the jobs that it runs in the background ignore it, and the programs that we start would, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile(
        "ours",
        deadline=None,
        derandomize=os.environ.get("ALLSWELL_EXAMPLES") != "new",
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("ours")


def pytest_collection_finish() -> None:
    """What is there before the first test lives to the last: thousands of garbage collections need not walk it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loops that everything must work on."""
    backend: str = request.param
    return backend
