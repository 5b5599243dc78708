"""The two compressions of an archive, each with a checksum of the whole at its end.

Both can say the same in several ways, and some of their bits (the time in the head of gzip) say nothing.
Where one of these changes and what comes out does not, no damage is found, and none is done.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator
from typing import IO, Final

ENDINGS: Final = ("tar.zst", "tar.gz")
_GZIP_LEVEL = 6
_ZSTD_LONGEST_HEAD = 18
_ZSTD_ONE_BYTE_REPEATED = 1
_ZSTD_CHECKSUM_BYTES = 4


@contextlib.contextmanager
def compressed(target: IO[bytes], ending: str) -> Iterator[IO[bytes]]:
    """Give what writes an archive of this ending into an empty file."""
    if ending == "tar.gz":
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=_GZIP_LEVEL, filename="") as stream:
            yield stream  # type: ignore[misc]
        return
    import zstandard

    compressor = zstandard.ZstdCompressor(write_checksum=True)
    with compressor.stream_writer(target, closefd=False) as stream:
        yield stream


@contextlib.contextmanager
def decompressed(source: IO[bytes], name: str, *, whole: bool) -> Iterator[IO[bytes]]:
    """Give what reads an archive of this name; with ``whole`` one that lost its end is refused at once.

    What is damaged raises EOFError, ValueError, an OSError without a number or :func:`zstd_error`, at the
    latest where the reader has come to the end.
    """
    if name.endswith("tar.gz"):
        with gzip.GzipFile(fileobj=source, mode="rb") as stream:
            yield stream  # type: ignore[misc]
        return
    import zstandard

    if whole:
        _require_checksum(source)
        source.seek(0)
    with zstandard.ZstdDecompressor().stream_reader(source, closefd=False) as stream:
        yield stream


def _require_checksum(source: IO[bytes]) -> None:
    """Refuse a file that is not one frame of zstd with its checksum (RFC 8878, 3.1.1).

    The library's reader takes an end that was cut off for the end, and then compares no checksum.
    """
    import zstandard

    head = source.read(_ZSTD_LONGEST_HEAD)
    has_checksum = zstandard.get_frame_parameters(head).has_checksum
    source.seek(zstandard.frame_header_size(head))
    is_last = 0
    while not is_last:
        if len(block := source.read(3)) < 3:
            raise EOFError("its end is missing")
        fields = int.from_bytes(block, "little")
        is_last, kind, size = fields & 1, fields >> 1 & 3, fields >> 3
        source.seek(1 if kind == _ZSTD_ONE_BYTE_REPEATED else size, os.SEEK_CUR)
    checksum = source.read(_ZSTD_CHECKSUM_BYTES + 1)
    if not has_checksum or len(checksum) != _ZSTD_CHECKSUM_BYTES:
        raise ValueError("it does not end with the checksum of the whole")


def zstd_error() -> type[Exception]:
    """Return the error of zstd's library."""
    import zstandard

    return zstandard.ZstdError
