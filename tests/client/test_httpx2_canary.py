"""Canaries: every private name of httpx2 and httpcore2 that is used here, and what it must be.

When one of these dies, read the name in the test's id: the httpx2 that is installed has changed it. (What functions of
httpx2's must *do* is watched by ``test_short.py``.)
"""

from __future__ import annotations

import inspect
import io
from collections.abc import AsyncIterator
from typing import Any

import httpcore2
import httpx
import httpx2
import httpx2._client
import httpx2._content
import httpx2._decoders
import httpx2._types
import httpx2._urlparse
import pytest

import allswell

_REQUEST = httpx2.Request("POST", "http://x.example/", content=b"x")

#: Attributes, the object that has each, and the type of its value.
ATTRIBUTES: dict[str, tuple[Any, type]] = {
    "_auth": (httpx2.AsyncClient(), type(None)),
    "_connection": (httpcore2.AsyncHTTPConnection(httpcore2.URL("http://x.example").origin), type(None)),
    "_content": (_REQUEST, bytes),
    "_cookies": (httpx2.Cookies().jar, dict),
    "_decoder": (httpx2.Response(200, content=b"x"), httpx2._decoders.ContentDecoder),
    "_default_encoding": (httpx2.AsyncClient(), str),
    "_encoding": (httpx2.Headers(), type(None)),
    "_event_hooks": (httpx2.AsyncClient(), dict),
    "_list": (httpx2.Headers(), list),
    "_mounts": (httpx2.AsyncClient(), dict),
    "_num_bytes_downloaded": (httpx2.Response(200), int),
    "_pool": (httpx2.AsyncHTTPTransport(), httpcore2.AsyncConnectionPool),
    "_request": (httpx2.Response(200), type(None)),
    "_start": (httpx2._client.BoundAsyncStream(httpx2.ByteStream(b""), start=0.0), float),
    "_state": (httpx2.AsyncClient(), httpx2._client.ClientState),
    "_stream": (httpx2.ByteStream(b"x"), bytes),
    "_transport": (httpx2.AsyncClient(), httpx2.AsyncHTTPTransport),
    "_uri_reference": (httpx2.URL("http://x.example"), httpx2._urlparse.ParseResult),
}

#: Methods that are called or overridden, their classes, and their parameters.
METHODS: dict[str, tuple[type, list[str]]] = {
    "_build_redirect_request": (httpx2.AsyncClient, ["self", "request", "response"]),
    "_build_request_auth": (httpx2.AsyncClient, ["self", "request", "auth"]),
    "_get_content_decoder": (httpx2.Response, ["self"]),
    "_init_proxy_transport": (
        httpx2.AsyncClient,
        ["self", "proxy", "verify", "cert", "trust_env", "http1", "http2", "limits"],
    ),
    "_init_transport": (
        httpx2.AsyncClient,
        ["self", "verify", "cert", "trust_env", "http1", "http2", "limits", "transport"],
    ),
    "_merge_cookies": (httpx2.AsyncClient, ["self", "cookies"]),
    "_merge_headers": (httpx2.AsyncClient, ["self", "headers"]),
    "_merge_queryparams": (httpx2.AsyncClient, ["self", "params"]),
    "_merge_url": (httpx2.AsyncClient, ["self", "url"]),
    "_redirect_headers": (httpx2.AsyncClient, ["self", "request", "url", "method"]),
    "_redirect_method": (httpx2.AsyncClient, ["self", "request", "response"]),
    "_send_handling_auth": (httpx2.AsyncClient, ["self", "request", "auth", "follow_redirects", "history"]),
    "_send_handling_redirects": (httpx2.AsyncClient, ["self", "request", "follow_redirects", "history"]),
    "_send_single_request": (httpx2.AsyncClient, ["self", "request"]),
    "_set_timeout": (httpx2.AsyncClient, ["self", "request"]),
    "_transport_for_url": (httpx2.AsyncClient, ["self", "url"]),
}

#: Modules, and what is imported from each.
MODULES = {
    "_client": ["USE_CLIENT_DEFAULT", "BoundAsyncStream", "ClientState", "UseClientDefault"],
    "_content": ["AsyncIteratorByteStream", "encode_request"],
    "_decoders": ["ContentDecoder", "GZipDecoder", "ZlibDecompressor"],
    "_multipart": ["MultipartStream"],
    "_types": [
        "AuthTypes",
        "CertTypes",
        "CookieTypes",
        "HeaderTypes",
        "QueryParamTypes",
        "RequestContent",
        "RequestData",
        "RequestExtensions",
        "RequestFiles",
        "TimeoutTypes",
    ],
    "_urlparse": ["ParseResult"],
}

NAMES = {*ATTRIBUTES, *METHODS, *MODULES}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute(name: str) -> None:
    owner, kind = ATTRIBUTES[name]
    if name == "_decoder":
        owner._get_content_decoder()  # makes it
    assert isinstance(getattr(owner, name), kind)


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    owner, parameters = METHODS[name]
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    assert [each for each in MODULES[name] if not hasattr(getattr(httpx2, name), each)] == []


def test_what_is_made_of_bodies() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b""

    libraries: list[Any] = [httpx2, httpx]
    for library in libraries:
        request = library.Request("POST", "http://x.example", content=pieces())
        assert type(request.stream) is library._content.AsyncIteratorByteStream
        assert isinstance(request.stream._stream, AsyncIterator)
        form = library.Request("POST", "http://x.example", data={"a": "b"}, files={"f": io.BytesIO(b"x")}).stream
        assert type(form) is library._multipart.MultipartStream
        assert [hasattr(field, "file") for field in form.fields] == [False, True]
        assert issubclass(library.StreamConsumed, Exception)
        assert issubclass(library.ByteStream, library.AsyncByteStream)


def test_a_client_of_ours_has_a_transport_of_ours() -> None:
    assert list(httpx2.AsyncClient(mounts={"all://x.example": None})._mounts.values()) == [None]
    assert isinstance(allswell.AsyncClient()._transport, allswell.AsyncTransport)
