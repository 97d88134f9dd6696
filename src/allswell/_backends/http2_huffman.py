"""Huffman's code of HPACK (RFC 7541 §5.2), octet by octet where hpack goes bit by bit.

Theory of operation. Encoding joins the codes of all octets as text, and reads that text as one number. C does both.

Decoding walks through the tree of codes. Before each octet it is at one of 256 places in the tree: the beginnings of
codes. An octet always has the same result at one place: the symbols that it completes, and the next place. So each such
*step* is worked out once, and looked up from then on. There are at most 65 536 steps, for all connections together.
They take 8 MB if servers use all of them.

Strings that do not decode here go to hpack, which says what is wrong.
"""

from __future__ import annotations

import hpack  # noqa: F401 - before its modules: threads that import both ways at once would wait for each other
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman

_CODES = [format(code, f"0{length}b") for code, length in zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)]
_END_OF_STRING = 256

_code = _CODES.__getitem__

#: The padding (§5.2), by the number of bits that the last octet lacks: the beginning of the end of string's code.
_PADDING = [_CODES[_END_OF_STRING][: -left % 8] for left in range(8)]

#: The symbols, by their codes' bits behind a 1.
_SYMBOLS = {int("1" + code, 2): symbol for symbol, code in enumerate(_CODES)}


def encode(text: bytes) -> bytes:
    """Encode a string, with the padding."""
    bits = "".join(map(_code, text))
    bits += _PADDING[len(bits) & 7]
    return int(bits or "0", 2).to_bytes(len(bits) >> 3, "big")


def decode(coded: bytes) -> bytes:
    """Decode a string.

    :raises hpack.HPACKDecodingError: if the code is invalid.
    """
    place = _ROOT
    found = []
    try:
        for octet in coded:
            symbols, place = place.steps[octet] or place.learn(octet)
            found.append(symbols)
    except LookupError:
        return decode_huffman(coded)
    return b"".join(found) if place.may_end else decode_huffman(coded)


class _Place:
    """A place in the tree.

    :param number: the bits of a code's beginning, behind a 1 that keeps their zeros. The root is 1.
    :ivar steps: from here, by octet: the symbols and the next place; ``None`` if that was not needed yet.
    :ivar may_end: whether the bits since the last symbol are padding: fewer than eight, and all ones.
    """

    __slots__ = ("_number", "may_end", "steps")

    def __init__(self, number: int) -> None:
        self._number = number
        self.steps: list[tuple[bytes, _Place] | None] = [None] * 256
        self.may_end = number < 1 << 8 and not number & (number + 1)

    def learn(self, octet: int) -> tuple[bytes, _Place]:
        """Work out a step.

        :raises LookupError: if there is none, because the end of string must not be encoded.
        """
        number, symbols = self._number, bytearray()
        for bit in range(7, -1, -1):
            number = number << 1 | octet >> bit & 1
            symbol = _SYMBOLS.get(number)
            if symbol == _END_OF_STRING:
                raise LookupError
            if symbol is not None:
                symbols.append(symbol)
                number = 1
        if number not in _PLACES:
            _PLACES[number] = _Place(number)
        step = self.steps[octet] = bytes(symbols), _PLACES[number]
        return step


_ROOT = _Place(1)
_PLACES = {1: _ROOT}
