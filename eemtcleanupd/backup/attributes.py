"""What an archive says about a file besides its content: mode, owner, time, holes and extended attributes.

Everything is in the form that GNU tar reads too: PAX headers ``SCHILY.xattr.*`` for extended attributes, and
``GNU.sparse.*`` (version 0.1) for holes.  Of the extended attributes, those of users and the access control
lists are copied; ``security.*`` and ``trusted.*`` belong to the machine and are not.
"""

from __future__ import annotations

import copy
import errno
import os
import stat
import string
import tarfile
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Final
from urllib.parse import quote, unquote_to_bytes

_XATTR: Final = "SCHILY.xattr."
_KEPT_XATTRS: Final = ("user.", "system.posix_acl_")
_MAP: Final = "GNU.sparse.map"
_REAL_SIZE: Final = "GNU.sparse.size"
# GNU tar escapes "=" and "%" in names; bytes that are not ASCII have no other form in a keyword.
_UNESCAPED: Final = "".join(set(string.punctuation) - set("%=")) + " "


def member(path: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    """Return the member for an entry with this status; its size is 0."""
    info = tarfile.TarInfo(path)
    info.type = kind
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    if nanoseconds:
        info.pax_headers = {"mtime": f"{Decimal(status.st_mtime_ns).scaleb(-9):f}"}
    return info


def add_xattrs(info: tarfile.TarInfo, fd: int) -> None:
    """Add the extended attributes of an open file or folder to its member.

    Raises:
        OSError: an attribute cannot be read.
    """
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.ENOSYS}:
            return
        raise
    headers = {
        _XATTR + quote(os.fsencode(name), safe=_UNESCAPED): os.getxattr(fd, name).decode(
            "utf-8", "surrogateescape"
        )
        for name in sorted(names)
        if name.startswith(_KEPT_XATTRS)
    }
    info.pax_headers = {**info.pax_headers, **headers}


def set_segments(info: tarfile.TarInfo, size: int, segments: Sequence[tuple[int, int]]) -> None:
    """Make a member a sparse one, of which the archive stores only these parts (offset, length)."""
    # As GNU tar does, an empty part marks the end, so the map of a file without any data is not empty.
    numbers = [number for segment in (*segments, (size, 0)) for number in segment]
    headers = {
        _REAL_SIZE: str(size),
        "GNU.sparse.numblocks": str(len(numbers) // 2),
        _MAP: ",".join(map(str, numbers)),
    }
    info.pax_headers = {**info.pax_headers, **headers}
    info.size = sum(length for _, length in segments)


def segment_map(info: tarfile.TarInfo) -> str | None:
    """Return the map of a sparse member, None for another one."""
    return info.pax_headers.get(_MAP)


def stored(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without its map: what the archive stores of it."""
    segment_map = info.pax_headers.get(_MAP)
    if segment_map is None:
        return info
    plain = copy.copy(info)
    plain.sparse, plain.size = None, sum(map(int, segment_map.split(",")[1::2]))
    return plain


def correct_size(info: tarfile.TarInfo) -> None:
    """Set the size of a sparse member: tarfile takes the stored size for it from 8 GiB on."""
    if _REAL_SIZE in info.pax_headers:
        info.size = int(info.pax_headers[_REAL_SIZE])


def restore(info: tarfile.TarInfo, target: str) -> Iterator[str]:
    """Set owner (as root), mode, extended attributes and time of an unpacked entry.

    Yields:
        What could not be set, and why; the rest is set.
    """
    steps: list[tuple[str, Callable[[], None]]] = []
    if os.geteuid() == 0:
        steps.append(("owner", partial(os.chown, target, info.uid, info.gid, follow_symlinks=False)))
    if not info.issym():
        steps.append(("mode", partial(os.chmod, target, info.mode)))
    for keyword, text in info.pax_headers.items():
        if keyword.startswith(_XATTR):
            name = unquote_to_bytes(keyword.removeprefix(_XATTR))
            value = text.encode("utf-8", "surrogateescape")
            set_xattr = partial(os.setxattr, target, name, value, follow_symlinks=False)
            steps.append((f"extended attribute {os.fsdecode(name)}", set_xattr))
    moment = int(Decimal(info.pax_headers.get("mtime", info.mtime)).scaleb(9))
    steps.append(("time", partial(os.utime, target, ns=(moment, moment), follow_symlinks=False)))
    for what, step in steps:
        try:
            step()
        except OSError as error:
            yield f"{what}: {error.strerror}"
