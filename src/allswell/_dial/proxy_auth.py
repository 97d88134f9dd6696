"""Authentication to an HTTP proxy: by name and password (Basic), or by an ``Auth`` of httpx2 (Digest).

An auth flow of httpx2 is for origins. Proxies do the same under other names (RFC 9110 §11.7): 407 for 401,
Proxy-Authenticate for WWW-Authenticate, Proxy-Authorization for Authorization. So the flow gets a stand-in for our
request, and the proxy's answer under the names of an origin's. The ``Auth`` remembers Digest's nonce and how often it
was used (RFC 7616 §3.4), for all requests through hops that have the same ``Auth``. So only the first one is refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from types import TracebackType
from typing import Self

import httpx2

from allswell._config import ProxyHop
from allswell._errors import ConnectFailed
from allswell._filters.http_connect import basic_auth
from allswell._messages import Headers


class ProxyAuth:
    """The fields for a proxy with one request, and with its repetition after a 407. A context manager.

    :param method: the request's method.
    :param target: the request-target that the proxy gets. (Digest covers it: RFC 7616 §3.4.6.)
    :ivar headers: the fields to send now: the hop's own, and the credentials.
    """

    def __init__(self, hop: ProxyHop, method: bytes, target: bytes) -> None:
        self._hop = hop
        self._flow: AsyncGenerator[httpx2.Request, httpx2.Response] | None = None
        self._request: httpx2.Request | None = None
        if isinstance(hop.auth, httpx2.Auth):
            request = httpx2.Request(method.decode("ascii"), "http://proxy")
            request.url = _Target(target)
            self._flow = hop.auth.async_auth_flow(request)

    async def __aenter__(self) -> Self:
        if self._flow is not None:
            await self._step(anext(self._flow))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._flow is not None:
            await self._flow.aclose()

    @property
    def headers(self) -> Headers:
        fields = _always(self._hop)
        said = self._request.headers.get("Authorization") if self._request is not None else None
        if said is not None and not _says_who(fields):
            fields.append((b"Proxy-Authorization", said.encode("ascii")))
        return fields

    async def again(self, status: int, headers: Headers) -> bool:
        """Whether the request should be sent again, with the new ``headers`` of this object.

        :param status: the status of the proxy's answer.
        :param headers: its header section.
        :raises ConnectFailed: if the proxy asks for credentials in a way that we do not know.
        """
        if self._flow is None or status != 407:
            return False
        asked = [(b"WWW-Authenticate", value) for name, value in headers if name.lower() == b"proxy-authenticate"]
        answer = httpx2.Response(401, headers=asked, content=b"", request=self._request)
        return await self._step(self._flow.asend(answer))

    async def _step(self, step: Awaitable[httpx2.Request]) -> bool:
        try:
            self._request = await step
        except StopAsyncIteration:
            return False
        except (httpx2.ProtocolError, NotImplementedError, ValueError) as error:
            message = f"cannot log in to the proxy {self._hop} in the way that it asks for: {error}"
            raise ConnectFailed(message, phase="proxy", by="peer") from error
        return True


class _Target(httpx2.URL):
    """A URL of which only the request-target is used. That may have any form (RFC 9112 §3.2)."""

    def __init__(self, target: bytes) -> None:
        super().__init__("http://proxy")
        self._target = target

    @property
    def raw_path(self) -> bytes:
        return self._target


def _always(hop: ProxyHop) -> Headers:
    """The fields for this proxy that are the same in each request."""
    headers = list(hop.headers)
    if isinstance(hop.auth, tuple) and not _says_who(headers):
        headers.append((b"Proxy-Authorization", basic_auth(hop.auth)))
    return headers


def _says_who(headers: Headers) -> bool:
    return any(name.lower() == b"proxy-authorization" for name, _ in headers)
