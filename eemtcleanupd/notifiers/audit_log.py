"""The audit log: JSON lines in a hash chain, each synced to the disk before the action continues.

A line ends with its hash, the SHA-256 of the rest of the line.  ``prev`` is the hash of the previous line, 64
zeros in the first.  The file ``….head`` beside the log contains number and hash of the newest line, so that
``audit verify`` also finds lines that are missing at the end.  A user who can write the log's folder can
forge the complete chain; copy it to another machine if that matters.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from eemtcleanupd.config.plugin_settings import PluginSettings
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.errors import AuditError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.files import write_atomic
from eemtcleanupd.hookspecs import hookimpl

_FIRST_HASH = "0" * 64
_HASH_KEY = ', "hash": "'
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_LINE = 4 * 1024 * 1024


class AuditLogSettings(PluginSettings, strict=True):
    """Settings of the audit log."""

    enabled: bool = Field(True, description="Whether to write the audit log.")
    path: FilePath = Field(
        Path("./logs/cleanup_audit.jsonl"),
        validate_default=True,
        description="Path of the audit log, JSON lines; by default in the folder paths.logs.",
    )
    max_mb: Annotated[float, Field(gt=0, le=100_000)] = Field(
        100, description="Size above which a new file is started; old files are kept, numbered."
    )


class AuditLog:
    """Writes entries to the log named in the settings."""

    @hookimpl
    def register_settings(self) -> type[AuditLogSettings]:
        return AuditLogSettings

    @hookimpl
    def audit(self, entries: Sequence[AuditEntry], settings: AuditLogSettings) -> None:
        append(settings.path, entries, max_bytes=int(settings.max_mb * 1024 * 1024))


def append(path: Path, entries: Sequence[AuditEntry], *, max_bytes: int) -> None:
    """Append entries and wait until they are on the disk.

    Raises:
        AuditError: writing failed; none of the entries is valid.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            tail = _tail(path, descriptor)
            if tail.torn:  # an interrupted write, never acknowledged, but kept
                torn = AuditEntry(entries[0].timestamp, "eemtcleanupd", "torn_line", {"text": tail.torn})
                entries = [torn, *entries]
            lines = [_line(tail, entry) for entry in entries]
            size = os.fstat(descriptor).st_size
            data = "".join(f"{line}\n" for line in lines).encode()
            if tail.torn:
                data = b"\n" + data
            written = os.write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, size)
                raise AuditError(
                    f"Cannot write the audit log {path}: no space left on the device. "
                    "Nothing is deleted without an audit log."
                )
            os.fsync(descriptor)
            head = json.dumps({"seq": tail.seq, "hash": tail.hash})
            write_atomic(_head_path(path), f"{head}\n".encode("ascii"), mode=None)
            if size + written > max_bytes:
                path.rename(path.with_name(f"{path.name}.{tail.seq:09d}"))
                _sync_folder(path.parent)
    except OSError as error:
        raise AuditError(
            f"Cannot write the audit log {path} ({error.strerror}). Nothing is deleted without an audit log. "
            "Make it writable, or set notifications.audit_log.path to a writable path."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open the log and hold its lock; if the file was rotated meanwhile, open the new one."""
    while True:
        is_new = not path.exists()
        descriptor = os.open(path, _FLAGS, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            status = os.fstat(descriptor)
            try:
                current = path.stat()
            except FileNotFoundError:
                continue
            if (current.st_dev, current.st_ino) != (status.st_dev, status.st_ino):
                continue
            if is_new:
                _sync_folder(path.parent)
            yield descriptor
            return
        finally:
            os.close(descriptor)


@dataclass(slots=True)
class _Tail:
    """The end of the chain: number and hash of the newest line, and incomplete text after it."""

    seq: int
    hash: str
    torn: str = ""


def _tail(path: Path, descriptor: int) -> _Tail:
    size = os.fstat(descriptor).st_size
    length = 4096
    while True:
        start = max(0, size - length)
        chunk = os.pread(descriptor, size - start, start)
        complete, newline, torn = chunk.rpartition(b"\n")
        last = complete.rpartition(b"\n")[2] if newline else b""
        if start == 0 or b"\n" in complete or length > _LONGEST_LINE:
            break
        length *= 4
    text = torn.decode("utf-8", "replace")
    if not last:
        older = _rotated(path)
        if not older:
            return _Tail(0, _FIRST_HASH, text)
        with older[-1].open("rb") as file:
            tail = _tail(older[-1], file.fileno())
        return _Tail(tail.seq, tail.hash, text)
    try:
        return _Tail(int(json.loads(last)["seq"]), _split(last.decode())[1], text)
    except (ValueError, KeyError, TypeError):
        # The line was changed.  The chain continues from here, and `audit verify` reports the break.
        head = _read_head(path)
        return _Tail(head[0] if head else 0, hashlib.sha256(last).hexdigest(), text)


def _line(tail: _Tail, entry: AuditEntry) -> str:
    """Return the next line of the chain, and advance the tail to it."""
    tail.seq += 1
    line: dict[str, Any] = {
        "seq": tail.seq,
        "timestamp": entry.timestamp.isoformat(timespec="milliseconds"),
        "user": entry.user,
        "action": entry.action,
        "details": dict(entry.details),
    }
    if entry.ip_address is not None:
        line["ip_address"] = entry.ip_address
    body = json.dumps({**line, "prev": tail.hash})[:-1]
    tail.hash = hashlib.sha256(body.encode()).hexdigest()
    return f'{body}{_HASH_KEY}{tail.hash}"}}'


def _split(line: str) -> tuple[str, str]:
    """Return the hashed part of a line, and the hash; ValueError if it has none."""
    body, separator, end = line.rpartition(_HASH_KEY)
    if not separator or not end.endswith('"}') or len(end) != 66:
        raise ValueError("no hash at its end")
    return body, end[:-2]


def _head_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _read_head(path: Path) -> tuple[int, str] | None:
    try:
        head = json.loads(_head_path(path).read_bytes())
        return int(head["seq"]), str(head["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rotated(path: Path) -> list[Path]:
    """Return the rotated files, oldest first; each is named after the number of its last line."""
    return sorted(
        (file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit()),
        key=lambda file: int(file.suffix[1:]),
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- verify ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChainError:
    """A break of the chain; ``line`` counts from 1 in its file."""

    file: Path
    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of checking the complete chain."""

    lines: int
    files: tuple[Path, ...]
    errors: tuple[ChainError, ...]


def verify(path: Path) -> Verification:
    """Check every line of the log and of its rotated files.

    Returns:
        The number of lines, and each break: a line that was changed, removed, inserted or moved, or lines
        missing at the end.

    Raises:
        OSError: a file cannot be read.
    """
    files = [*_rotated(path), *([path] if path.exists() else [])]
    errors: list[ChainError] = []
    seq, previous_hash, count = 0, _FIRST_HASH, 0
    file, number = path, 0
    for file in files:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                count += 1
                message, seq, previous_hash = _check_line(raw, seq, previous_hash)
                if message:
                    errors.append(ChainError(file, number, message))
    head = _read_head(path)
    if head is None and count:
        message = "this file is missing, so lines might be missing at the end of the log"
        errors.append(ChainError(_head_path(path), 1, message))
    elif head is not None and head[0] > seq:
        missing = _lines(seq + 1, head[0])
        errors.append(ChainError(file, number + 1, f"missing at the end: {missing} of the chain"))
    elif head is not None and head[0] == seq and head[1] != previous_hash:
        errors.append(ChainError(file, number, f"line {seq} of the chain was replaced"))
    return Verification(count, tuple(files), tuple(errors))


def _check_line(raw: bytes, seq: int, previous_hash: str) -> tuple[str, int, str]:
    """Return a line's error, empty if none, and the number and hash that the next line must follow."""
    if not raw.endswith(b"\n"):
        return "the line is incomplete", seq, previous_hash
    try:
        text = raw.decode().removesuffix("\n")
        body, own = _split(text)
        entry = json.loads(text)
        number, prev = int(entry["seq"]), str(entry["prev"])
    except (ValueError, KeyError, TypeError):
        return "not a line of an audit log: changed, or truncated by a crash", seq, previous_hash
    if hashlib.sha256(body.encode()).hexdigest() != own:
        return f"line {number} of the chain was changed", max(number, seq), own
    if number == seq + 1 and prev == previous_hash:
        return "", number, own
    if number > seq + 1:
        return f"missing here: {_lines(seq + 1, number - 1)} of the chain", number, own
    if number <= seq:
        return f"line {number} of the chain was inserted or moved here", seq, previous_hash
    message = f"line {number} of the chain does not match the previous line: one of them was replaced"
    return message, number, own


def _lines(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"
