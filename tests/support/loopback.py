"""What crosses the loopback to and from some ports: a socket that is shown this and nothing else, and its frames.

It is an AF_PACKET socket, so it takes Linux and CAP_NET_RAW, which root has (:func:`capture_available`). The loopback
shows each packet twice, going out and coming in: only those coming in are kept. The kernel filters, before anything
takes room in the socket's buffer. So however much others send, nothing of these ports is lost by it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

#: linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h.
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_PACKET_OUTGOING = 4
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER = 64 << 20

#: linux/bpf_common.h, linux/filter.h. A step: an operation, how many steps it skips if equal and if not, and a number.
_Step = tuple[int, int, int, int]
_STEP = struct.Struct("=HBBI")
_LOAD_8, _LOAD_16, _LOAD_16_AFTER_X = 0x30, 0x28, 0x48
_X_IS, _X_IS_IPV4_HEADER = 0x01, 0xB1
_EQUAL, _RETURN = 0x15, 0x06
_PACKET_TYPE = 0xFFFFF004
_KEEP, _DROP = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)

#: Where things are in a frame.
_ETHER_TYPE, _IP = 12, 14
_IPV6_HEADER = 40


def overhear(*ports: int) -> socket.socket:
    """A raw socket that is shown the frames to and from these ports, of TCP and of UDP, over IPv4 and IPv6.

    (And, if their bytes happen to look like that, others that :func:`take_apart` does not know.)

    :raises AttributeError, PermissionError: see :func:`capture_available`.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # it is shown nothing before it is bound
    try:
        program = b"".join(_STEP.pack(*step) for step in _filter(ports))
        code = ctypes.create_string_buffer(program, len(program))
        attached = struct.pack("@HP", len(program) // _STEP.size, ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        with suppress(PermissionError):  # to exceed the system's limit takes CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind(("lo", _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def _filter(ports: tuple[int, ...]) -> list[_Step]:
    """The filter, in classic BPF. The loopback has nothing but IP, without extension headers or fragments."""
    keep_if_a_port = [step for port in ports for step in ((_EQUAL, 0, 1, port), _KEEP)]
    return [
        *((_LOAD_8, 0, 0, _PACKET_TYPE), (_EQUAL, 0, 1, _PACKET_OUTGOING), _DROP),
        (_X_IS_IPV4_HEADER, 0, 0, _IP),
        *((_LOAD_16, 0, 0, _ETHER_TYPE), (_EQUAL, 1, 0, _ETH_P_IP), (_X_IS, 0, 0, _IPV6_HEADER)),
        *((_LOAD_16_AFTER_X, 0, 0, _IP), *keep_if_a_port),  # the source port
        *((_LOAD_16_AFTER_X, 0, 0, _IP + 2), *keep_if_a_port),  # the destination port
        _DROP,
    ]


@dataclass(frozen=True)
class Crossed:
    """A packet of TCP or UDP.

    :ivar protocol: ``socket.IPPROTO_TCP`` or ``socket.IPPROTO_UDP``.
    :ivar source, destination: address and port.
    :ivar ecn: the two bits of RFC 3168.
    :ivar size: of header and payload of TCP or UDP, in bytes.
    :ivar data: these bytes, as far as the frame has been read.
    """

    protocol: int
    source: tuple[str, int]
    destination: tuple[str, int]
    ecn: int
    size: int
    data: bytes


def take_apart(frame: bytes) -> Crossed | None:
    """The packet in an Ethernet frame; ``None`` if it is not of TCP or UDP over IP."""
    (kind,) = struct.unpack_from("!H", frame, _ETHER_TYPE)
    if kind == _ETH_P_IP:  # RFC 791, 3.1
        start = _IP + 4 * (frame[_IP] & 15)
        end = _IP + struct.unpack_from("!H", frame, _IP + 2)[0]
        traffic_class, protocol = frame[_IP + 1], frame[_IP + 9]
        hosts = [socket.inet_ntop(socket.AF_INET, frame[at : at + 4]) for at in (_IP + 12, _IP + 16)]
    elif kind == _ETH_P_IPV6:  # RFC 8200, 3
        start = _IP + _IPV6_HEADER
        end = start + struct.unpack_from("!H", frame, _IP + 4)[0]
        traffic_class, protocol = struct.unpack_from("!H", frame, _IP)[0] >> 4 & 0xFF, frame[_IP + 6]
        hosts = [socket.inet_ntop(socket.AF_INET6, frame[at : at + 16]) for at in (_IP + 8, _IP + 24)]
    else:
        return None
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return None
    source, destination = zip(hosts, struct.unpack_from("!HH", frame, start), strict=True)
    return Crossed(protocol, source, destination, traffic_class & 3, end - start, frame[start:end])


@cache
def capture_available() -> bool:
    """Whether this process may see what crosses the loopback."""
    try:
        overhear().close()
    except (AttributeError, PermissionError):
        return False
    return True
