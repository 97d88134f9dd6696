"""allswell: an async HTTP client that ends well. HTTP/1.1, HTTP/2 and HTTP/3, on asyncio and trio."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allswell._addresses import Contact, Hosts, PublicAddresses
from allswell._alt_svc_store import Alternative, AltSvcStore
from allswell._client import AsyncClient
from allswell._client_certificate import ClientCertificate
from allswell._config import PoolConfig, ProxyHop, QuicConfig, Retry, Timeouts
from allswell._dial.alt_svc_store import AltSvcFile, AltSvcMemory
from allswell._errors import (
    AddressNotAllowed,
    AllswellError,
    ConnectFailed,
    ExchangeReset,
    LocalProtocolError,
    PinMismatch,
    PoolClosed,
    ProtocolError,
    ProxyRefused,
    RemoteProtocolError,
    Timeout,
    TransportError,
    UnsupportedProtocol,
)
from allswell._messages import ResponseHead
from allswell._pool.pool import ConnectionPool
from allswell._report import CloseReport, ConnectionEnd, LayerEnd, Outcome
from allswell._request.response import Attempt, Response
from allswell._transport import AsyncTransport

if TYPE_CHECKING:
    from allswell._connect_udp import UdpTunnel, connect_udp
    from allswell._dial.dns_over_https import DnsOverHttps
    from allswell._har.recording import HarRecording
    from allswell._operations import drain_on_signal, lifespan
    from allswell._pool.snapshot import ConnectionSnapshot, PoolSnapshot, RouteSnapshot
    from allswell._quic_store import QuicMemory, QuicStore, QuicTicket
    from allswell._request.datagrams import HttpDatagrams

__version__ = "0.2.0"

__all__ = [
    "AddressNotAllowed",
    "AllswellError",
    "AltSvcFile",
    "AltSvcMemory",
    "AltSvcStore",
    "Alternative",
    "AsyncClient",
    "AsyncTransport",
    "Attempt",
    "ClientCertificate",
    "CloseReport",
    "ConnectFailed",
    "ConnectionEnd",
    "ConnectionPool",
    "ConnectionSnapshot",
    "Contact",
    "DnsOverHttps",
    "ExchangeReset",
    "HarRecording",
    "Hosts",
    "HttpDatagrams",
    "LayerEnd",
    "LocalProtocolError",
    "Outcome",
    "PinMismatch",
    "PoolClosed",
    "PoolConfig",
    "PoolSnapshot",
    "ProtocolError",
    "ProxyHop",
    "ProxyRefused",
    "PublicAddresses",
    "QuicConfig",
    "QuicMemory",
    "QuicStore",
    "QuicTicket",
    "RemoteProtocolError",
    "Response",
    "ResponseHead",
    "Retry",
    "RouteSnapshot",
    "Timeout",
    "Timeouts",
    "TransportError",
    "UdpTunnel",
    "UnsupportedProtocol",
    "__version__",
    "connect_udp",
    "drain_on_signal",
    "lifespan",
]

#: Names that few programs use, and the modules that have them. They are imported on first use.
_LATE = {
    "ConnectionSnapshot": "_pool.snapshot",
    "DnsOverHttps": "_dial.dns_over_https",
    "HarRecording": "_har.recording",
    "HttpDatagrams": "_request.datagrams",
    "PoolSnapshot": "_pool.snapshot",
    "QuicMemory": "_quic_store",
    "QuicStore": "_quic_store",
    "QuicTicket": "_quic_store",
    "RouteSnapshot": "_pool.snapshot",
    "UdpTunnel": "_connect_udp",
    "connect_udp": "_connect_udp",
    "drain_on_signal": "_operations",
    "lifespan": "_operations",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
