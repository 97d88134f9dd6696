"""The types of _runs.c, which says what the functions do."""

from collections.abc import Callable, Sequence

from typing_extensions import Buffer

ABI: int

def open_run(
    keys: tuple[
        Callable[[Buffer, Buffer, Buffer, Buffer], int], Callable[[Buffer], bytes], bytes, bytes, int, type[Exception]
    ],
    run: Buffer,
    ends: Sequence[int],
    index: int,
    expected: int,
    /,
) -> list[tuple[int, int, int, bytes | list[tuple[int, int, bytes, int]]]]: ...
def seal_run(
    keys: tuple[Callable[[Buffer, Buffer, Buffer, Buffer], int], Callable[[Buffer], bytes], bytes, bytes],
    first: int,
    number: int,
    head: bytes,
    offset: int,
    width: int,
    data: Buffer,
    chunk: int,
    /,
) -> list[bytes]: ...
