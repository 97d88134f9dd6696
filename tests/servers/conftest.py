"""The real servers as fixtures, each started once, when the first test asks for it; their logs beside a failure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from tests.servers.apache import apache
from tests.servers.caddy import caddy
from tests.servers.haproxy import haproxy
from tests.servers.hypercorn import hypercorn
from tests.servers.lighttpd import lighttpd
from tests.servers.nghttpd import nghttpd
from tests.servers.nginx import nginx
from tests.support.servers import ServerInfo, needed, running

SERVERS: dict[str, Callable[[], AbstractContextManager[ServerInfo]]] = {
    "caddy": caddy,
    "nginx": nginx,
    "haproxy": haproxy,
    "apache": apache,
    "lighttpd": lighttpd,
    "hypercorn": hypercorn,
    "nghttpd": nghttpd,
}
H1_SERVERS = [name for name in SERVERS if name != "nghttpd"]


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], ServerInfo]]:
    """A function that gives a server by its name, started when it is first asked for; skips where there is none."""
    with ExitStack() as stack:
        started: dict[str, ServerInfo] = {}

        def get(name: str) -> ServerInfo:
            if name not in started:
                started[name] = stack.enter_context(SERVERS[name]())
            return started[name]

        yield get


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, servers: Callable[[str], ServerInfo]) -> ServerInfo:
    """Every server in turn."""
    return servers(request.param)


@pytest.fixture(params=H1_SERVERS)
def h1_server(request: pytest.FixtureRequest, servers: Callable[[str], ServerInfo]) -> ServerInfo:
    """Every server that speaks HTTP/1.1, in turn."""
    return servers(request.param)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The marker ``server("nginx")``: the test starts that program by itself; skip it where there is none."""
    for marker in item.iter_markers("server"):
        needed(*marker.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers wrote beside a test that failed."""
    report = yield
    if report.failed:
        report.sections += [(f"{server.name}'s log", server.log()) for server in running]
    return report
