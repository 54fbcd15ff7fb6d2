"""Fixtures for tests against a real Redis, and the logs of all servers when a test fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import raw
import servers
from servers import Proxy, RedisServer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,  # noqa: ARG001 - what pytest calls it with
    call: pytest.CallInfo[None],  # noqa: ARG001
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of the servers that run to the report of a failure."""
    report = yield
    if report.failed:
        for process in servers.running:
            report.sections.append((f"log of {type(process).__name__}", process.log()[-10_000:]))
    return report


@pytest.fixture(autouse=True)
def _connections_end_with_the_test() -> Iterator[None]:
    yield
    while raw.opened:
        raw.opened.pop().close()


@pytest.fixture(scope="module", params=servers.binaries().values(), ids=list(servers.binaries()))
def any_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every Redis that is installed, for what is compared with a direct connection."""
    with RedisServer(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def any_proxy(any_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(any_server.url) as proxy:
        yield proxy


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis for one test, where it matters which connections it has."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    """A Redis for the tests of one module."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    """The module's Redis, empty."""
    module_server.ask("FLUSHALL")
    return module_server


@pytest.fixture(scope="module")
def module_proxy(module_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before the module's Redis."""
    with Proxy(module_server.url) as proxy:
        yield proxy


@pytest.fixture
def proxy(module_proxy: Proxy, module_server: RedisServer) -> Proxy:
    """The module's proxy, its Redis empty."""
    module_server.ask("FLUSHALL")
    return module_proxy
