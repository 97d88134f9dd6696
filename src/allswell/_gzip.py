"""A response whose gzip content may have several members (RFC 1952 §2.2). httpx2 reads the first, and drops the others.

What follows a member and is none itself is ignored, as httpx2 ignores all that follows.
"""

from __future__ import annotations

import zlib

import httpx2
from httpx2._decoders import ContentDecoder, GZipDecoder, ZlibDecompressor

_MAGIC = b"\x1f\x8b"
#: Members without content that may follow one another: each is work, and no caller sees anything of it.
_EMPTY_MEMBERS = 1000


class Response(httpx2.Response):
    """httpx2's response, which reads all members."""

    def _get_content_decoder(self) -> ContentDecoder:
        # httpx2's own hook; it and the decoders' attributes are private names that we rely on.
        if hasattr(self, "_decoder"):
            return self._decoder
        decoder = super()._get_content_decoder()
        for each in (decoder, *getattr(decoder, "children", ())):
            if isinstance(each, GZipDecoder):
                each.decompressor = ZlibDecompressor(_Members())
        return decoder


class _Members:
    """A decompressor with zlib's interface, which goes on with the next member where one ends.

    :ivar unconsumed_tail: what the next call must be given, because of ``max_length``.
    """

    def __init__(self) -> None:
        self.unconsumed_tail = b""
        self._member = _member()
        self._kept = b""  # between members: what may be the start of the next
        self._over = False
        self._empty = 0

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        """At most so many bytes."""
        self.unconsumed_tail = b""
        while True:
            if self._member.eof and not self._next(data := self._kept + data):
                return b""
            decompressed = self._member.decompress(data, max_length)
            if not self._member.eof:
                self.unconsumed_tail = self._member.unconsumed_tail
                return decompressed
            data = self._member.unused_data
            if decompressed:
                self._empty = 0
                self.unconsumed_tail = data
                return decompressed
            self._empty += 1
            if self._empty > _EMPTY_MEMBERS:
                raise zlib.error("members without content, and no end of them")

    def _next(self, data: bytes) -> bool:
        """Begin another member, if there is one."""
        self._kept = b""
        if self._over or not data:
            return False
        if data == _MAGIC[:1]:
            self._kept = data
            return False
        if not data.startswith(_MAGIC):
            self._over = True
            return False
        self._member = _member()
        return True

    def flush(self) -> bytes:
        """What is left."""
        return self._member.flush()


def _member() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)
