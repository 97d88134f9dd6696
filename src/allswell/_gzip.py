"""A response whose gzip content may have several members (RFC 1952 §2.2). httpx2 reads only the first.

Bytes after the last member are ignored, as httpx2 ignores all bytes after the first.
"""

from __future__ import annotations

import sys
import zlib

import httpx2
from httpx2._decoders import ContentDecoder, GZipDecoder, ZlibDecompressor

_MAGIC = b"\x1f\x8b"
#: How many members without content may follow one another. Each costs work, and gives the caller no byte.
_EMPTY_MEMBERS = 1000
#: How many bytes a new member is given at first.
_PORTION = 16 * 1024


class Response(httpx2.Response):
    """httpx2's response, but it reads all members."""

    def _get_content_decoder(self) -> ContentDecoder:
        # httpx2 asks this method for the decoder. It and the decoders' attributes are private names that we rely on.
        if hasattr(self, "_decoder"):
            return self._decoder
        decoder = super()._get_content_decoder()
        for each in (decoder, *getattr(decoder, "children", ())):
            if isinstance(each, GZipDecoder):
                each.decompressor = ZlibDecompressor(_Members())
        return decoder


class _Members:
    """A decompressor with zlib's interface that goes on with the next member when one ends.

    zlib copies the input that it is given and does not consume. So a new member is given a small portion first. If it
    were given all input, each of many small members would copy all that follow it: quadratic work.

    :ivar unconsumed_tail: always empty. This object keeps what is not consumed.
    """

    unconsumed_tail = b""

    def __init__(self) -> None:
        self._member = _member()
        self._input = b""
        self._position = 0  # where in the input the part begins that is not consumed
        self._portion = sys.maxsize
        self._over = False
        self._empty = 0

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        """Return at most ``max_length`` bytes (0: any number). Return none if all input is consumed."""
        if data:
            self._input, self._position = self._input[self._position :] + data, 0
        while not self._member.eof or self._next():
            member = self._member
            piece = memoryview(self._input)[self._position :][: self._portion]
            decompressed = member.decompress(piece, max_length)
            self._position += len(piece) - len(member.unused_data if member.eof else member.unconsumed_tail)
            if not member.eof:
                self._portion = sys.maxsize
            if decompressed:
                self._empty = 0
                return decompressed
            if member.eof:
                self._empty += 1
                if self._empty > _EMPTY_MEMBERS:
                    raise zlib.error(f"the gzip content has more than {_EMPTY_MEMBERS} empty members in a row")
            elif self._position == len(self._input):
                break
        return b""

    def _next(self) -> bool:
        """Begin another member, if there is one."""
        magic = self._input[self._position : self._position + len(_MAGIC)]
        self._over = self._over or not _MAGIC.startswith(magic)
        if self._over:
            self._input = b""
        if self._over or len(magic) < len(_MAGIC):  # the second byte may be still to come
            return False
        self._member = _member()
        self._portion = _PORTION
        return True

    def flush(self) -> bytes:
        """Return what the last member has left."""
        return self._member.flush()


def _member() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)
