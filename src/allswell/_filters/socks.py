"""The SOCKS5 filter (RFC 1928), with user name and password (RFC 1929): a tunnel, or a relay of datagrams.

socksio (extra ``socks``, imported on use) writes and reads the messages. Where a message ends is decided here.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from allswell._errors import ConnectFailed, ProxyRefused, TransportError
from allswell._filters.interface import ByteStream
from allswell._filters.tunnel import TunnelFilter

if TYPE_CHECKING:
    from socksio import socks5

#: RFC 1928 §6.
_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}
_ADDRESS_SIZES = {1: 4, 4: 16}


class Socks5Filter(TunnelFilter):
    """A tunnel through a SOCKS5 proxy.

    :param host: the address to connect to, or a name that the proxy resolves.
    :param auth: user name and password.
    :param datagrams: ask for a relay of datagrams instead of a tunnel (UDP ASSOCIATE). Host and port are then those
        that we send from, if we know them. The relay lives as long as this connection.
    :ivar bound: after :meth:`connect`: the address and port that the proxy uses. Datagrams for a relay go there.
    """

    name = "socks5"

    def __init__(
        self,
        lower: ByteStream,
        *,
        proxy: str,
        host: str,
        port: int,
        auth: tuple[bytes, bytes] | None = None,
        datagrams: bool = False,
    ) -> None:
        super().__init__(lower, proxy)
        self._target = host, port
        self._auth = auth
        self._datagrams = datagrams
        self.bound: tuple[str, int] = ("", 0)

    async def connect(self) -> None:
        try:
            from socksio import ProtocolError, socks5
        except ImportError as error:
            message = f"the proxy {self._proxy} needs the package socksio: install allswell[socks]"
            raise ConnectFailed(message, phase="proxy", by="us") from error
        engine = socks5.SOCKS5Connection()
        try:
            await self._agree(engine)
            reply = await self._ask(engine, self._command())
        except TransportError as error:
            raise self._failed(str(error)) from error
        except (ProtocolError, UnicodeDecodeError) as error:  # (socksio decodes names strictly)
            raise self._failed("it does not speak SOCKS5") from error
        assert isinstance(reply, socks5.SOCKS5Reply)
        self.bound = reply.addr, reply.port
        self._ready = True

    async def _agree(self, engine: socks5.SOCKS5Connection) -> None:
        """Agree on a method of authentication (RFC 1928 §3), and authenticate."""
        from socksio import socks5

        methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
        if self._auth is not None:
            methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
        agreed = await self._ask(engine, socks5.SOCKS5AuthMethodsRequest(methods))
        assert isinstance(agreed, socks5.SOCKS5AuthReply)
        if agreed.method not in methods:
            login = "it requires a login, and auth is not set"
            raise self._refused(agreed.method[0], login if self._auth is None else "it accepts no login by password")
        if agreed.method is socks5.SOCKS5AuthMethod.USERNAME_PASSWORD:
            assert self._auth is not None
            if not all(1 <= len(each) <= 255 for each in self._auth):
                message = f"the proxy {self._proxy}: SOCKS5 takes names and passwords of 1 to 255 bytes"
                raise ConnectFailed(message, phase="proxy", by="us")
            verdict = await self._ask(engine, socks5.SOCKS5UsernamePasswordRequest(*self._auth))
            assert isinstance(verdict, socks5.SOCKS5UsernamePasswordReply)
            if not verdict.success:
                raise self._refused(1, "wrong name or password")

    def _command(self) -> socks5.SOCKS5CommandRequest:
        from socksio import socks5

        host, port = self._target
        kind = socks5.SOCKS5Command.UDP_ASSOCIATE if self._datagrams else socks5.SOCKS5Command.CONNECT
        try:
            address = ip_address(host)
        except ValueError:
            name = host.encode("ascii")
            if len(name) > 255:
                message = f"the proxy {self._proxy}: SOCKS5 takes names of at most 255 bytes"
                raise ConnectFailed(message, phase="proxy", by="us") from None
            return socks5.SOCKS5CommandRequest(kind, socks5.SOCKS5AType.DOMAIN_NAME, name, port)
        version = socks5.SOCKS5AType.IPV4_ADDRESS if address.version == 4 else socks5.SOCKS5AType.IPV6_ADDRESS
        return socks5.SOCKS5CommandRequest(kind, version, address.packed, port)

    async def _ask(
        self,
        engine: socks5.SOCKS5Connection,
        request: socks5.SOCKS5AuthMethodsRequest | socks5.SOCKS5UsernamePasswordRequest | socks5.SOCKS5CommandRequest,
    ) -> socks5.SOCKS5AuthReply | socks5.SOCKS5UsernamePasswordReply | socks5.SOCKS5Reply:
        from socksio import ProtocolError, socks5

        engine.send(request)
        self._lower.transmit(engine.data_to_send())
        await self._lower.flush()
        size = 2
        if isinstance(request, socks5.SOCKS5CommandRequest):
            await self._need(2)
            code = self._received[1]
            if self._received[0] == 5 and code:
                raise self._refused(code, _REPLIES.get(code, f"reply {code}"))
            await self._need(5)
            kind = self._received[3]
            length = _ADDRESS_SIZES.get(kind, 1 + self._received[4] if kind == 3 else 0)
            if not length:
                raise ProtocolError("unknown type of address")
            size = 4 + length + 2
        await self._need(size)
        message = bytes(self._received[:size])
        del self._received[:size]
        if message[0] != (1 if isinstance(request, socks5.SOCKS5UsernamePasswordRequest) else 5):
            raise ProtocolError("unknown version")
        return engine.receive_data(message)

    async def _need(self, size: int) -> None:
        while len(self._received) < size:
            if not await self._receive():
                raise self._failed("it ended the connection without an answer")

    def _refused(self, code: int, words: str) -> ProxyRefused:
        return ProxyRefused(f"the proxy {self._proxy} refused the tunnel: {words}", status=code, headers=[], body=b"")
