"""UDP through a proxy, as callers use it (CONNECT-UDP, RFC 9298)."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from urllib.parse import quote

import httpx2

from allswell._capsules import LARGEST_UDP, DatagramTooLargeError, from_udp, to_udp
from allswell._clock import monotonic
from allswell._errors import LocalProtocolError, ProxyRefused, RemoteProtocolError
from allswell._fields import named_url, without_zone
from allswell._request.datagrams import HttpDatagrams

_HEADERS = {"Connection": "Upgrade", "Upgrade": "connect-udp", "Capsule-Protocol": "?1"}
_VARIABLES = frozenset({"target_host", "target_port"})
_EXPRESSION = re.compile(r"\{([?&]?)([a-z_,]+)\}")
#: How many bytes of a refusal's body are kept.
_SHOWN = 1024


class UdpTunnel:
    """UDP to and from one host and port, through a proxy. See :func:`connect_udp`.

    One task may send while another receives.

    :ivar response: the proxy's answer.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._datagrams: HttpDatagrams = response.extensions["datagrams"]

    @property
    def max_size(self) -> int:
        """The bytes of the largest payload that can be sent now. (Over HTTP/3 that depends on the path.)"""
        return min(self._datagrams.max_size - len(from_udp(b"")), LARGEST_UDP)

    async def send(self, payload: bytes) -> None:
        """Send a UDP payload. It raises what :meth:`HttpDatagrams.send` raises.

        :raises LocalProtocolError: if the payload has more than 65527 bytes (RFC 9298 §5).
        """
        if len(payload) > LARGEST_UDP:
            raise LocalProtocolError(f"a UDP payload has at most {LARGEST_UDP} bytes, not {len(payload)}")
        await self._datagrams.send(from_udp(payload))

    async def receive(self, timeout: float | None = None) -> bytes | None:
        """Return the next UDP payload; ``None`` if the proxy has ended the tunnel. See :meth:`HttpDatagrams.receive`.

        Datagrams of other contexts are dropped (RFC 9298 §4).

        :param timeout: seconds; ``None``: no limit.
        """
        datagrams, at = self._datagrams, math.inf if timeout is None else monotonic() + timeout
        while (datagram := await datagrams._receive(timeout, at)) is not None:
            try:
                payload = to_udp(datagram)
            except DatagramTooLargeError as error:
                raise datagrams._broken(f"sent a datagram of {error.size} bytes") from error
            if payload is not None:
                return payload
        return None

    def __aiter__(self) -> UdpTunnel:
        return self

    async def __anext__(self) -> bytes:
        payload = await self.receive()
        if payload is None:
            raise StopAsyncIteration
        return payload


@asynccontextmanager
async def connect_udp(client: httpx2.AsyncClient, template: str, host: str, port: int) -> AsyncIterator[UdpTunnel]:
    """Open a tunnel for UDP through a proxy: by an extended CONNECT over HTTP/2 and HTTP/3, an Upgrade over HTTP/1.1.

    :param client: an :class:`AsyncClient`. Its settings apply to the connection to the proxy.
    :param template: the proxy's URI template, with the variables ``target_host`` and ``target_port``:
        ``"https://proxy.example/.well-known/masque/udp/{target_host}/{target_port}/"``.
    :param host: the target: a name, or an IP address without brackets.
    :param port: the target's UDP port.
    :raises ValueError: if the template is not valid (RFC 9298 §2), or the port is not.
    :raises ProxyRefused: if the proxy's answer is not a success.
    :raises RemoteProtocolError: if it switches to another protocol (RFC 9298 §3.3).
    :raises httpx2.TransportError: as for any request of the client.
    """
    url = _expanded(template, {"target_host": without_zone(host), "target_port": str(_checked(port))})
    async with client.stream("GET", url, headers=_HEADERS, follow_redirects=False) as response:
        if response.status_code != 101:
            body = b""
            async with aclosing(response.aiter_raw(_SHOWN)) as pieces:
                with suppress(httpx2.TransportError, StopAsyncIteration):  # the refusal is raised in any case
                    body = await anext(pieces)
            words = f"the proxy refused UDP to {host}:{port}: {response.status_code} ({named_url(url)})"
            raise ProxyRefused(words, status=response.status_code, headers=response.headers.raw, body=body)
        switched_to = response.headers.get("upgrade", "")
        if switched_to.lower() != "connect-udp":
            raise RemoteProtocolError(
                f"the proxy switched to {switched_to!r} and not to connect-udp ({named_url(url)})"
            )
        tunnel = UdpTunnel(response)
        try:
            yield tunnel
        finally:
            await tunnel._datagrams.aclose()


def _checked(port: int) -> int:
    if not 0 < port < 1 << 16:
        raise ValueError(f"port must be from 1 to 65535, not {port}")
    return port


def _expanded(template: str, values: dict[str, str]) -> str:
    """A template with its variables filled in (RFC 6570): ``{name}``, ``{?name,…}`` and ``{&name,…}``."""
    named: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        operator, names = match[1], match[2].split(",")
        if not _VARIABLES.issuperset(names):
            raise ValueError(f"the template {named_url(template)!r} has other variables than target_host, target_port")
        named.update(names)
        given = [quote(values[name], safe="") for name in names]
        if not operator:
            return ",".join(given)
        return operator + "&".join(f"{name}={value}" for name, value in zip(names, given, strict=True))

    url = _EXPRESSION.sub(fill, template)
    if named != _VARIABLES or "{" in url:
        words = "must have the variables target_host and target_port (RFC 9298 §2)"
        raise ValueError(f"the template {named_url(template)!r} {words}")
    return url
