"""Integers and strings of HPACK and QPACK, for literal field lines (RFC 7541 §5, RFC 9204 §4.1)."""

from __future__ import annotations

_OCTETS = [bytes((octet,)) for octet in range(256)]


def integer(value: int, bits: int, flags: int = 0) -> bytes:
    """Encode an integer with a prefix of some bits, behind the flags that share its first byte (RFC 7541 §5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return _OCTETS[flags | value]
    coded = bytearray((flags | most,))
    value -= most
    while value >= 0x80:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def integer_end(data: bytes, position: int, bits: int) -> int:
    """Find the end of an integer that begins there."""
    most = (1 << bits) - 1
    if data[position] & most == most:
        position += 1
        while data[position] & 0x80:
            position += 1
    return position + 1


def string(text: bytes) -> bytes:
    """Encode a string without Huffman's code (RFC 7541 §5.2)."""
    size = len(text)
    return (_OCTETS[size] if size < 0x7F else integer(size, 7)) + text
