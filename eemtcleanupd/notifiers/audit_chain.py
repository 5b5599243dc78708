"""The chain of an audit log in its files: the format of a line, and the lines read from the newest on."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eemtcleanupd.events import AuditAnchor

START = AuditAnchor(0, "0" * 64)
"""What the first line of a chain follows."""
MISMATCH = "chain_mismatch"
"""Action of the line that records that the log was not as the anchors say."""
MAX_NUMBER = 10**15
"""The numbers of all lines are below this."""
HASH_KEY = ', "hash": "'
ANCHOR_KEY = '"anchor": '

_POSITION = re.compile(rb'\{"seq": (\d{1,18}), .*, "hash": "([0-9a-f]{64})"\}')
# The suffixes of our own rotation, and those of logrotate (numbers, dateext).
_ROTATED = re.compile(r"[.-](\d[\d-]*)(\.(?:gz|bz2|xz|zst|lz4))?")
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FIRST_LINE = re.compile(rb'\n\{"seq": (\d{1,18}), ')
_BLOCK = 16 * 1024
_LONGEST_LINE = 4 * 1024 * 1024


def read_head(path: Path) -> AuditAnchor | None:
    """Return the anchor beside a log; None if the file is missing or invalid.

    An empty file, which a power cut can leave, names no line.
    """
    try:
        with opened(path.with_name(f"{path.name}.head")) as descriptor:
            text = os.read(descriptor, 1024)
        if not text.strip(b"\0"):
            return START
        head = json.loads(text)
        anchor = AuditAnchor(int(head["seq"]), str(head["hash"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return anchor if 0 <= anchor.seq < MAX_NUMBER else None


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a regular file for reading; a link is not followed, and a FIFO is not waited for."""
    descriptor = os.open(path, _READ_FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def rotated(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the older files of a log, oldest first, and the compressed ones, which are not readable.

    The files are in the order of their first lines, because logrotate gives the newest the lowest number.
    """
    plain: list[tuple[int, str]] = []
    compressed: list[Path] = []
    try:
        with os.scandir(path.parent) as entries:
            for entry in entries:
                suffix = _ROTATED.fullmatch(entry.name.removeprefix(path.name))
                is_ours = entry.name.startswith(path.name) and suffix is not None
                if suffix is None or not is_ours or not entry.is_file(follow_symlinks=False):
                    continue
                if suffix[2]:
                    compressed.append(path.with_name(entry.name))
                else:
                    number = int(re.sub("-", "", suffix[1]))
                    plain.append((_first_number(path.with_name(entry.name)) or number, entry.name))
    except FileNotFoundError:
        return [], []
    return [path.with_name(name) for _, name in sorted(plain)], sorted(compressed)


def _first_number(file: Path) -> int | None:
    with opened(file) as descriptor:
        found = re.match(rb'\{"seq": (\d{1,18}), ', os.pread(descriptor, 64, 0))
    return None if found is None else int(found[1])


def position(line: bytes) -> AuditAnchor | None:
    """Return the number and the hash that a line claims, None if it is not a line of an audit log."""
    found = _POSITION.fullmatch(line)
    return None if found is None else AuditAnchor(int(found[1]), found[2].decode())


def split_hash(line: str) -> tuple[str, str]:
    """Return the hashed part of a line, and the hash; ValueError if it has none."""
    body, separator, end = line.rpartition(HASH_KEY)
    if not separator or not end.endswith('"}') or len(end) != 66:
        raise ValueError("no hash at its end")
    return body, end[:-2]


def backwards(descriptor: int, end: int | None = None) -> Iterator[bytes]:
    """Yield the text after the last newline before ``end``, then the complete lines, the last one first."""
    end = os.fstat(descriptor).st_size if end is None else end
    rest = b""
    while end > 0 and len(rest) <= _LONGEST_LINE:
        start = max(0, end - _BLOCK)
        rest, *lines = (os.pread(descriptor, end - start, start) + rest).split(b"\n")
        yield from reversed(lines)
        end = start
    yield rest


def chain_backwards(path: Path, before: int | None = None) -> Iterator[bytes]:
    """Yield all complete lines of a log and of its older files, the newest first.

    With ``before``, most lines of this number and of later ones are left out without being read.
    """
    with suppress(FileNotFoundError):
        yield from _complete_lines(path, before)
    for file in reversed(rotated(path)[0]):
        yield from _complete_lines(file, before)


def _complete_lines(file: Path, before: int | None) -> Iterator[bytes]:
    with opened(file) as descriptor:
        lines = backwards(descriptor, None if before is None else _end_before(descriptor, before))
        next(lines)  # incomplete
        yield from lines


def _end_before(descriptor: int, number: int) -> int:
    """Return a place soon after the lines before a number: numbers rise in a file of a log."""
    start, end = 0, os.fstat(descriptor).st_size
    while end - start > _BLOCK:
        middle = (start + end) // 2
        found = _FIRST_LINE.search(os.pread(descriptor, min(4 * _BLOCK, end - middle), middle))
        if found is None:
            break
        if int(found[1]) >= number:
            end = middle + found.start() + 1
        else:
            start = middle + found.end()
    return end


def lost_anchors(lines: Iterable[bytes], anchors: Iterable[AuditAnchor]) -> set[AuditAnchor]:
    """Return the anchors whose line the log has lost, unless a line of the log records that.

    Args:
        lines: the lines of the log, the newest first.
        anchors: what the log must contain.
    """
    lost = {anchor for anchor in anchors if anchor.seq > 0}
    if not lost:
        return lost
    for line in lines:
        found = position(line)
        if found is not None:
            lost.discard(found)
        if MISMATCH.encode() in line:
            lost -= _recorded(line)
        if not lost:
            break
    return lost


def _recorded(line: bytes) -> set[AuditAnchor]:
    """Return the anchors that a line records as lost, none if it does not record any."""
    entry = parsed(line)
    if entry is None or entry.get("action") != MISMATCH:
        return set()
    try:
        return {AuditAnchor(found["seq"], found["hash"]) for found in entry["details"]["expected"]}
    except (KeyError, TypeError):
        return set()


def lost_ledger(lines: Iterable[bytes]) -> int:
    """Return the number that the log says the ledger had, although the ledger has none now; else 0.

    A line ``chain_mismatch`` that records this ends the search.
    """
    for line in lines:
        if MISMATCH.encode() in line:
            entry = parsed(line)
            if entry is not None and entry.get("action") == MISMATCH:
                return 0
        if ANCHOR_KEY.encode() in line and (entry := parsed(line)) is not None:
            number = entry.get("anchor")
            if isinstance(number, int) and number > 0:
                return number
    return 0


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line as JSON object, None if it is not one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
