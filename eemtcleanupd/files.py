"""Safe file access: files that are replaced as a whole, written where other users may have access.

Every function works relative to an open folder descriptor, and follows no link in the last component of
a path.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def replacing(path: Path, *, mode: int | None = 0o600, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a new file to write, which replaces ``path`` when the body ends without an exception.

    Readers see the old content or the new, never a part.  The new file has a random name beside ``path``;
    a link at ``path`` is replaced, not followed.

    Args:
        path: the file; its folder must exist.
        mode: the permissions of the new file, whatever the umask; None for those that the umask leaves.
        durable: whether to wait until file and folder are on the disk (fsync(2)).

    Raises:
        OSError: the file cannot be written; then ``path`` is as it was.
    """
    folder = os.open(path.parent, _FOLDER)
    temporary = f".{path.name[:200]}.{secrets.token_hex(8)}"
    try:
        with os.fdopen(
            os.open(temporary, _NEW_FILE, 0o666 if mode is None else 0o600, dir_fd=folder), "wb"
        ) as file:
            try:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                # Everything that can fail comes before this line.
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
        if durable:
            os.fsync(folder)
    finally:
        os.close(folder)


def write_atomic(path: Path, content: bytes, *, mode: int | None = 0o600, durable: bool = False) -> None:
    """Replace the content of a file as a whole; see :func:`replacing` for arguments and errors."""
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(content)
