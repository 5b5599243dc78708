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
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from eemtcleanupd.deletion.copying import remove_inherited_access

_XATTR: Final = "SCHILY.xattr."
_USER_XATTRS: Final = "user."
_KEPT_XATTRS: Final = (_USER_XATTRS, "system.posix_acl_")
_TIME_LIMIT: Final = 1 << 63
"""The limit of a time (time_t), in seconds: in nanoseconds it ends in 2262, but file times can be later."""
_MAP: Final = "GNU.sparse.map"
_REAL_SIZE: Final = "GNU.sparse.size"
# GNU tar escapes "=" and "%" in names; bytes that are not ASCII have no other form in a keyword.
_UNESCAPED: Final = "".join(set(string.punctuation) - set("%=")) + " "

_Step: TypeAlias = tuple[str, Callable[[], object]]
"""What is set, and the call that sets it."""


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


def set_segments(info: tarfile.TarInfo, size: int, parts: Sequence[tuple[int, int]]) -> None:
    """Make a member a sparse one, of which the archive stores only these parts (offset, length)."""
    # As GNU tar does, an empty part marks the end, so the map of a file without any data is not empty.
    numbers = [number for part in (*parts, (size, 0)) for number in part]
    headers = {
        _REAL_SIZE: str(size),
        "GNU.sparse.numblocks": str(len(numbers) // 2),
        _MAP: ",".join(map(str, numbers)),
    }
    info.pax_headers = {**info.pax_headers, **headers}
    info.size = sum(length for _, length in parts)


def segment_map(info: tarfile.TarInfo) -> str | None:
    """Return the map of a sparse member, None for another one."""
    return info.pax_headers.get(_MAP)


def segments(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return offset and length of each part of a file that the archive stores, in their order there."""
    segment_map = info.pax_headers.get(_MAP)
    if segment_map is None:
        return [(0, info.size)]
    numbers = [int(number) for number in segment_map.split(",")]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def stored(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without its map: what the archive stores of it."""
    segment_map = info.pax_headers.get(_MAP)
    if segment_map is None:
        return info
    plain = copy.copy(info)
    plain.sparse, plain.size = None, sum(length for _, length in segments(info))
    return plain


def correct_size(info: tarfile.TarInfo) -> None:
    """Set the size of a sparse member: tarfile reports the stored size for members of 8 GiB or more."""
    if _REAL_SIZE in info.pax_headers:
        info.size = int(info.pax_headers[_REAL_SIZE])


def restore(info: tarfile.TarInfo, fd: int) -> Iterator[str]:
    """Set owner, mode, extended attributes and time of an unpacked file, folder or FIFO.

    Only root can set an owner; others can set the group if they are in it.  If owner or group differ, group
    and others get only the rights that both had.  Access control lists are not restored.  Those that it
    inherited from its new folder are always removed.  So no user can read more than before.

    The setuid and setgid bits of a file are never restored.  The content is untrusted: with these bits, its
    author could run a program as another user.  On a folder, setgid only passes on the group, so it is
    restored.

    Yields:
        What could not be set, and why; the rest is set.
    """
    yield from _try_each([_owner_step(info, fd)])
    status = os.fstat(fd)
    is_original = status.st_gid == info.gid and (os.geteuid() != 0 or status.st_uid == info.uid)
    mode = info.mode
    if not stat.S_ISDIR(status.st_mode) and mode & (stat.S_ISUID | stat.S_ISGID):
        yield "setuid and setgid bits: not allowed on files, for security"
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if not is_original:
        shared = mode & mode >> 3 & stat.S_IRWXO
        mode = mode & ~(stat.S_IRWXG | stat.S_IRWXO | stat.S_ISUID | stat.S_ISGID) | shared << 3 | shared
    steps: list[_Step] = [
        ("inherited access", partial(remove_inherited_access, fd)),
        ("mode", partial(os.fchmod, fd, mode)),
    ]
    for keyword, text in info.pax_headers.items():
        if keyword.startswith(_XATTR):
            name = os.fsdecode(unquote_to_bytes(keyword.removeprefix(_XATTR)))
            value = text.encode("utf-8", "surrogateescape")
            if name.startswith(_KEPT_XATTRS if is_original else _USER_XATTRS):
                steps.append((f"extended attribute {name}", partial(os.setxattr, fd, name, value)))
            else:
                yield f"extended attribute {name}: not allowed for this owner"
    steps.append(("time", partial(os.utime, fd, ns=_times(info))))
    yield from _try_each(steps)


def restore_link(info: tarfile.TarInfo, folder_fd: int, name: str) -> Iterator[str]:
    """Set owner (as root) and time of an unpacked symbolic link in an open folder; it is not followed.

    Yields:
        What could not be set, and why; the rest is set.
    """
    steps: list[_Step] = []
    if os.geteuid() == 0:
        set_owner = partial(os.chown, name, info.uid, info.gid, dir_fd=folder_fd, follow_symlinks=False)
        steps.append(("owner", set_owner))
    set_time = partial(os.utime, name, ns=_times(info), dir_fd=folder_fd, follow_symlinks=False)
    yield from _try_each([*steps, ("time", set_time)])


def _owner_step(info: tarfile.TarInfo, fd: int) -> _Step:
    if os.geteuid() == 0:
        return "owner", partial(os.fchown, fd, info.uid, info.gid)
    return "group", partial(os.fchown, fd, -1, info.gid)


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    seconds = Decimal(info.pax_headers.get("mtime", info.mtime))
    if not -_TIME_LIMIT < seconds < _TIME_LIMIT:
        raise ValueError("it has an impossible time")
    moment = int(seconds.scaleb(9))
    return moment, moment


def _try_each(steps: Iterable[_Step]) -> Iterator[str]:
    for what, step in steps:
        try:
            step()
        except OSError as error:
            yield f"{what}: {error.strerror}"
