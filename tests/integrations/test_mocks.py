"""Mocks for the whole process: what they answer never goes to a network, what they let pass does."""

from __future__ import annotations

import ssl
from importlib import metadata
from typing import Any
from unittest.mock import AsyncMock, patch

import httpcore2
import httpx
import httpx2
import pytest

import allswell
import allswell.httpx
from tests.integrations.conftest import Origin
from tests.integrations.needs import needed

pytestmark = pytest.mark.anyio

#: A name that no resolver knows (RFC 6761 §6.4): who asks the network fails.
NOWHERE = "http://nowhere.invalid/page?a=1"


@pytest.fixture(params=["AsyncClient", "AsyncTransport"])
def client(request: pytest.FixtureRequest) -> httpx2.AsyncClient:
    if request.param == "AsyncClient":
        return allswell.AsyncClient()
    return httpx2.AsyncClient(transport=allswell.AsyncTransport())


def httpx_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=allswell.httpx.AsyncTransport())


def _needs_distribution(name: str) -> None:
    """Two of the plugins have one name inside, so that only one of them can be installed."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")


class TestHttpx2Pytest:
    """pytest-httpx for httpx2."""

    @pytest.fixture
    def mock(self, request: pytest.FixtureRequest) -> Any:
        needed("pytest_httpx2")
        _needs_distribution("httpx2-pytest")
        return request.getfixturevalue("httpx2_mock")

    async def test_it_answers(self, mock: Any, client: httpx2.AsyncClient) -> None:
        mock.add_response(url=NOWHERE, json={"mocked": True}, headers={"x-from": "a mock"})
        async with client:
            response = await client.get(NOWHERE, headers={"x-to": "a mock"})
        assert response.json() == {"mocked": True}
        assert response.headers["x-from"] == "a mock"
        assert mock.get_request().headers["x-to"] == "a mock"

    async def test_it_streams(self, mock: Any, client: httpx2.AsyncClient) -> None:
        pytest_httpx2 = needed("pytest_httpx2._httpx_internals")
        mock.add_response(stream=pytest_httpx2.IteratorStream([b"one", b"two"]))
        async with client, client.stream("GET", NOWHERE) as response:
            assert [piece async for piece in response.aiter_raw()] == [b"one", b"two"]

    async def test_it_raises(self, mock: Any, client: httpx2.AsyncClient) -> None:
        mock.add_exception(httpx2.ReadTimeout("mocked"))
        async with client:
            with pytest.raises(httpx2.ReadTimeout, match="mocked"):
                await client.get(NOWHERE)

    async def test_it_sees_bodies_and_redirects(self, mock: Any, client: httpx2.AsyncClient) -> None:
        mock.add_response(method="POST", status_code=307, headers={"location": "/other"})
        mock.add_response(method="POST", url="http://nowhere.invalid/other", match_json={"a": 1}, text="there")
        async with client:
            response = await client.post(NOWHERE, json={"a": 1}, follow_redirects=True)
        assert response.text == "there"

    async def test_it_sees_the_proxy(self, mock: Any) -> None:
        mock.add_response(proxy_url="http://ada:lovelace@proxy.invalid:3128/", text="by proxy")
        mock.add_response(proxy_url="http://other.invalid:80/", is_optional=True)
        async with allswell.AsyncClient(proxy="http://ada:lovelace@proxy.invalid:3128") as client:
            assert (await client.get(NOWHERE)).text == "by proxy"

    @pytest.mark.httpx2_mock(should_mock=lambda request: request.url.host == "nowhere.invalid")
    async def test_what_it_lets_pass_is_ours(self, mock: Any, client: httpx2.AsyncClient, origin: Origin) -> None:
        async with client:
            response = await client.post(f"{origin.url}/real", content=b"x")
            assert response.extensions["attempts"] == []  # which is ours alone
        assert [(each["method"], each["path"], each["body"]) for each in origin.requests] == [("POST", "/real", "x")]


class TestPytestHttpx:
    @pytest.fixture
    def mock(self, request: pytest.FixtureRequest) -> Any:
        needed("pytest_httpx")
        return request.getfixturevalue("httpx_mock")

    async def test_it_answers(self, mock: Any) -> None:
        mock.add_response(url=NOWHERE, text="mocked")
        async with httpx_client() as client:
            assert (await client.get(NOWHERE)).text == "mocked"

    @pytest.mark.httpx_mock(should_mock=lambda request: request.url.host == "nowhere.invalid")
    async def test_what_it_lets_pass_is_ours(self, mock: Any, origin: Origin) -> None:
        async with httpx_client() as client:
            response = await client.post(f"{origin.url}/real", content=b"x")
            assert response.extensions["attempts"] == []
        assert [each["body"] for each in origin.requests] == ["x"]


class TestRespx:
    @pytest.mark.parametrize("using", ["httpcore", "httpx"])
    async def test_it_mocks_httpx(self, using: str, origin: Origin) -> None:
        respx = needed("respx")
        with respx.mock(using=using, assert_all_called=True) as router:
            router.get(NOWHERE).respond(json={"mocked": True})
            router.post(f"{origin.url}/real").pass_through()
            async with httpx_client() as client:
                assert (await client.get(NOWHERE)).json() == {"mocked": True}
                real = await client.post(f"{origin.url}/real", content=b"x")
                assert real.extensions["attempts"] == []
        assert [each["body"] for each in origin.requests] == ["x"]

    async def test_its_patches_are_gone_afterwards(self, origin: Origin) -> None:
        respx = needed("respx")
        async with httpx_client() as client:
            with respx.mock() as router:
                router.get(f"{origin.url}/").respond(text="mocked")
                assert (await client.get(f"{origin.url}/")).text == "mocked"
            assert (await client.get(f"{origin.url}/")).json()["path"] == "/"


class TestPytestHttpx2:
    """It is respx for httpcore2."""

    @pytest.fixture
    def mock(self, request: pytest.FixtureRequest) -> Any:
        needed("pytest_httpx2")
        _needs_distribution("pytest-httpx2")
        return request.getfixturevalue("httpx2_mock")

    async def test_it_answers(self, mock: Any, client: httpx2.AsyncClient, origin: Origin) -> None:
        mock.get(NOWHERE).respond(json={"mocked": True})
        mock.post(f"{origin.url}/real").pass_through()
        async with client:
            assert (await client.get(NOWHERE)).json() == {"mocked": True}
            real = await client.post(f"{origin.url}/real", content=b"x")
            assert real.json()["body"] == "x"
            assert real.extensions["attempts"] == []
        assert len(origin.requests) == 1

    async def test_it_raises(self, mock: Any, client: httpx2.AsyncClient) -> None:
        mock.get(NOWHERE).mock(side_effect=httpx2.ReadTimeout("mocked"))
        async with client:
            with pytest.raises(httpx2.ReadTimeout, match="mocked"):
                await client.get(NOWHERE)

    async def test_it_sees_what_goes_through_a_proxy(self, mock: Any) -> None:
        mock.get(NOWHERE).respond(text="mocked")
        async with allswell.AsyncClient(proxy="http://proxy.invalid:3128") as client:
            assert (await client.get(NOWHERE)).text == "mocked"


class TestUnittestMock:
    """What needs no package: the same places, patched by hand."""

    async def test_a_mock_that_does_not_bind(self, client: httpx2.AsyncClient) -> None:
        mock = AsyncMock(return_value=httpx2.Response(202, text="mocked"))
        with patch.object(httpx2.AsyncHTTPTransport, "handle_async_request", mock):
            async with client:
                assert (await client.get(NOWHERE)).status_code == 202
        assert mock.await_args is not None
        assert [str(each.url) for each in mock.await_args.args] == [NOWHERE]

    @pytest.mark.parametrize("owner", [httpcore2.AsyncConnectionPool, httpcore2.AsyncHTTPConnection])
    async def test_below_the_transport(self, owner: Any, client: httpx2.AsyncClient, origin: Origin) -> None:
        own = owner.handle_async_request

        async def handle_async_request(self: Any, request: httpcore2.Request) -> httpcore2.Response:
            if request.url.host == b"nowhere.invalid":
                return httpcore2.Response(200, content=b"mocked")
            request.headers.append((b"x-passed", b"yes"))
            found: httpcore2.Response = await own(self, request)
            return found

        with patch.object(owner, "handle_async_request", handle_async_request):
            async with client:
                assert (await client.get(NOWHERE)).text == "mocked"
                assert (await client.get(origin.url)).json()["headers"]["x-passed"] == "yes"

    async def test_errors_keep_their_cause(self, client: httpx2.AsyncClient) -> None:
        own = httpx2.AsyncHTTPTransport.handle_async_request

        async def handle_async_request(self: Any, request: httpx2.Request) -> httpx2.Response:
            return await own(self, request)

        with patch.object(httpx2.AsyncHTTPTransport, "handle_async_request", handle_async_request):
            async with client:
                with pytest.raises(httpx2.UnsupportedProtocol) as raised:
                    await client.get("ftp://nowhere.invalid/")
                assert isinstance(raised.value.__cause__, allswell.AllswellError)
                with pytest.raises(httpx2.ConnectError) as refused:
                    await client.get("http://127.0.0.1:1/")
                assert isinstance(refused.value.__cause__, allswell.AllswellError)

    async def test_the_way_of_every_request(self, client: httpx2.AsyncClient, origin: Origin) -> None:
        """Method, target, headers, body and extensions arrive as without a patch."""
        own = httpx2.AsyncHTTPTransport.handle_async_request

        async def handle_async_request(self: Any, request: httpx2.Request) -> httpx2.Response:
            return await own(self, request)

        async def send() -> dict[str, Any]:
            response = await client.request(
                "POST",
                f"{origin.url}/%C3%A9?q=%20",
                headers=[("X-A", "1"), ("X-B", "2")],
                files={"f": b"form"},
                extensions={"target": b"/elsewhere", "total_timeout": 30.0},
            )
            sent = origin.requests[-1]
            boundary = sent["headers"].pop("content-type").partition("boundary=")[2]
            return {**sent, "body": sent["body"].replace(boundary, ""), "extensions": set(response.extensions)}

        async with client:
            direct = await send()
            with patch.object(httpx2.AsyncHTTPTransport, "handle_async_request", handle_async_request):
                assert await send() == direct


async def test_ssl_contexts_are_not_made_for_it() -> None:
    """A pool of the library's for each request must cost no trust store."""
    with patch.object(ssl, "SSLContext", side_effect=AssertionError):
        pool = allswell.AsyncTransport._patches.pool(AsyncMock(), ())
        assert isinstance(pool, httpcore2.AsyncConnectionPool)
