"""Variable-length integers (RFC 9000 §16), of QUIC, HTTP/3 and capsules."""

from __future__ import annotations

#: By the first two bits, which say how long it is: its bytes, and the bits of its value.
_LENGTHS = ((1, 0x3F), (2, 0x3FFF), (4, 0x3FFFFFFF), (8, 0x3FFFFFFFFFFFFFFF))


def encode(value: int) -> bytes:
    """An integer, in as few bytes as it takes."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def decode(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The integer at a position, and the position behind it.

    :raises IndexError: when it is not all there.
    """
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size, bits = _LENGTHS[first >> 6]
    stop = at + size
    if stop > len(data):
        raise IndexError("an integer that is cut off")
    return int.from_bytes(data[at:stop], "big") & bits, stop
