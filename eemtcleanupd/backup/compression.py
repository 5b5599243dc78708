"""Compression of archives: gzip or Zstandard, each with a checksum of the content.

Both formats can encode the same content in several ways, and some header bits (such as gzip's time) have no
effect on it.  A change there that leaves the content the same is not reported as damage.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
from collections.abc import Iterator
from typing import IO, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENDINGS: Final = ("tar.zst", "tar.gz")
DAMAGE_ERRORS: Final = (EOFError, ValueError, ArithmeticError, RecursionError, zstd.ZstdError)
"""The errors of a damaged archive, besides an ``OSError`` without a number (gzip)."""
_GZIP_LEVEL = 6
_ZSTD_CHECKSUM_FLAG = 4  # a bit of the byte after the magic number (RFC 8878, 3.1.1.1.1)


@contextlib.contextmanager
def compressed(target: IO[bytes], ending: str) -> Iterator[IO[bytes]]:
    """Give a stream that writes an archive with this ending into an empty file."""
    if ending == "tar.gz":
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=_GZIP_LEVEL, filename="") as stream:
            yield stream  # type: ignore[misc]
        return
    options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    with zstd.ZstdFile(target, "wb", options=options) as stream:
        yield stream  # type: ignore[misc]


@contextlib.contextmanager
def decompressed(source: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """Give a stream that reads an archive of this name.

    A damaged archive raises one of :data:`DAMAGE_ERRORS` or an ``OSError`` without a number, at the latest at
    the end of the stream.
    """
    if name.endswith("tar.gz"):
        with gzip.GzipFile(fileobj=source, mode="rb") as stream:
            yield stream  # type: ignore[misc]
        return
    header = source.read(5)
    if len(header) == 5 and not header[4] & _ZSTD_CHECKSUM_FLAG:
        raise ValueError("it has no checksum")
    source.seek(0)
    with zstd.ZstdFile(source, "rb") as stream:
        yield stream  # type: ignore[misc]
