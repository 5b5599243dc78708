"""The audit log: JSON lines, each chained to the one before by hash and on the disk before work goes on.

A line ends in its own hash, SHA-256 of all that stands before it; ``prev`` is the hash of the line before, 64
zeros in the first.  Beside the log lies ``….head`` with the number and the hash of the newest line, so that
lines that are missing at the end are found too.  Who may write the log's folder could forge all of it: send
it elsewhere as well if that matters.
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

FIRST = "0" * 64
_HASH = ', "hash": "'
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_LINE = 4 * 1024 * 1024


class AuditLogSettings(PluginSettings, strict=True):
    """The audit log."""

    enabled: bool = Field(True, description="Whether to write the audit log.")
    path: FilePath = Field(
        Path("./logs/cleanup_audit.jsonl"),
        validate_default=True,
        description="The audit log, JSON lines; by default in the folder paths.logs.",
    )
    max_mb: Annotated[float, Field(gt=0, le=100_000)] = Field(
        100, description="Begin a new file when it is larger; old ones are kept, numbered."
    )


class AuditLog:
    """Writes the log that its settings name."""

    @hookimpl
    def register_settings(self) -> type[AuditLogSettings]:
        return AuditLogSettings

    @hookimpl
    def audit(self, entries: Sequence[AuditEntry], settings: AuditLogSettings) -> None:
        append(settings.path, entries, max_bytes=int(settings.max_mb * 1024 * 1024))


def append(path: Path, entries: Sequence[AuditEntry], *, max_bytes: int) -> None:
    """Append entries and wait until they are on the disk.

    Raises:
        AuditError: they could not be written; none of them counts.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            tail = _tail(path, descriptor)
            if tail.torn:  # a write that was cut off; never acknowledged, but nothing is thrown away
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
                    f"the audit log {path} cannot be written: no space left; nothing is done without it"
                )
            os.fsync(descriptor)
            _write_head(path, tail)
            if size + written > max_bytes:
                _rotate(path, tail.seq)
    except OSError as error:
        raise AuditError(
            f"the audit log {path} cannot be written ({error.strerror}), and nothing is done without it; "
            "mend that, or set notifications.audit_log.path to a place that can"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open the log and hold its lock; a file that was rotated away meanwhile is opened anew."""
    while True:
        new = not path.exists()
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
            if new:
                _sync_folder(path.parent)
            yield descriptor
            return
        finally:
            os.close(descriptor)


@dataclass(slots=True)
class _Tail:
    """The end of the chain: the newest line's number and hash, and what stands after it without an end."""

    seq: int
    hash: str
    torn: str = ""


def _tail(path: Path, descriptor: int) -> _Tail:
    size = os.fstat(descriptor).st_size
    length = 4096
    while True:
        start = max(0, size - length)
        chunk = os.pread(descriptor, size - start, start)
        whole, newline, torn = chunk.rpartition(b"\n")
        last = whole.rpartition(b"\n")[2] if newline else b""
        if start == 0 or b"\n" in whole or length > _LONGEST_LINE:
            break
        length *= 4
    text = torn.decode("utf-8", "replace")
    if not last:
        before = _rotated(path)
        if not before:
            return _Tail(0, FIRST, text)
        with before[-1].open("rb") as file:
            tail = _tail(before[-1], file.fileno())
        return _Tail(tail.seq, tail.hash, text)
    try:
        return _Tail(int(json.loads(last)["seq"]), _split(last.decode())[1], text)
    except (ValueError, KeyError, TypeError):
        # Somebody has been at it; the chain goes on from here, and `audit verify` says where it broke.
        seq = _read_head(path)
        return _Tail(seq[0] if seq else 0, hashlib.sha256(last).hexdigest(), text)


def _line(tail: _Tail, entry: AuditEntry) -> str:
    """Return the next line of the chain, of which it becomes the end."""
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
    return f'{body}{_HASH}{tail.hash}"}}'


def _split(line: str) -> tuple[str, str]:
    """Return what a line's hash is of, and the hash; ValueError when it has none."""
    body, found, end = line.rpartition(_HASH)
    if not found or not end.endswith('"}') or len(end) != 66:
        raise ValueError("no hash at its end")
    return body, end[:-2]


def _head_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _write_head(path: Path, tail: _Tail) -> None:
    head = json.dumps({"seq": tail.seq, "hash": tail.hash})
    write_atomic(_head_path(path), f"{head}\n".encode("ascii"), mode=None)


def _read_head(path: Path) -> tuple[int, str] | None:
    try:
        told = json.loads(_head_path(path).read_bytes())
        return int(told["seq"]), str(told["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rotated(path: Path) -> list[Path]:
    """Return the older files, oldest first; each is named after the number of its last line."""
    return sorted(
        (each for each in path.parent.glob(f"{path.name}.*") if each.suffix[1:].isdigit()),
        key=lambda each: int(each.suffix[1:]),
    )


def _rotate(path: Path, seq: int) -> None:
    path.rename(path.with_name(f"{path.name}.{seq:09d}"))
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- verify ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChainError:
    """A place where the chain is broken; ``line`` counts from 1 in its file."""

    file: Path
    line: int
    words: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a look at the whole chain found."""

    lines: int
    files: tuple[Path, ...]
    errors: tuple[ChainError, ...]


def verify(path: Path) -> Verification:
    """Look at every line of the log and of its older files.

    Returns:
        How many lines there are and where the chain is broken: a line changed, missing, inserted, or out of
        its order, or lines missing at the end.

    Raises:
        OSError: a file cannot be read.
    """
    files = [*_rotated(path), *([path] if path.exists() else [])]
    findings: list[ChainError] = []
    seq, before, count = 0, FIRST, 0
    file, number = path, 0
    for file in files:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                count += 1
                words, seq, before = _check_line(raw, seq, before)
                if words:
                    findings.append(ChainError(file, number, words))
    head = _read_head(path)
    if head is None and count:
        findings.append(ChainError(_head_path(path), 1, "it is missing, so lines may be missing at the end"))
    elif head is not None and head[0] > seq:
        missing = (
            f"line {seq + 1} of the chain"
            if head[0] == seq + 1
            else f"lines {seq + 1} to {head[0]} of the chain"
        )
        findings.append(ChainError(file, number + 1, f"{missing} are missing at the end"))
    elif head is not None and head[0] == seq and head[1] != before:
        findings.append(ChainError(file, number, f"line {seq} of the chain is not the one that was written"))
    return Verification(count, tuple(files), tuple(findings))


def _check_line(raw: bytes, seq: int, before: str) -> tuple[str, int, str]:
    """Return what is wrong with a line, and the number and hash from which the next one goes on."""
    if not raw.endswith(b"\n"):
        return "it is cut off", seq, before
    try:
        text = raw.decode().removesuffix("\n")
        body, own = _split(text)
        entry = json.loads(text)
        number, prev = int(entry["seq"]), str(entry["prev"])
    except (ValueError, KeyError, TypeError):
        return "this is no line of an audit log: it was changed, or cut off by a crash", seq, before
    if hashlib.sha256(body.encode()).hexdigest() != own:
        return f"line {number} of the chain was changed", max(number, seq), own
    if number == seq + 1 and prev == before:
        return "", number, own
    if number > seq + 1:
        missing = f"line {seq + 1}" if number == seq + 2 else f"lines {seq + 1} to {number - 1}"
        return f"{missing} of the chain, which should stand here, are missing", number, own
    if number <= seq:
        return f"line {number} of the chain stands here: it was inserted, or is out of its order", seq, before
    return (
        f"line {number} of the chain does not follow the one before it: one of them was replaced",
        number,
        own,
    )
