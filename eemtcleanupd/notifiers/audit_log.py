"""The audit log: JSON lines in a hash chain, each synced to the disk before the action continues.

A line ends with its hash, the SHA-256 of the rest of the line.  ``prev`` is the hash of the previous line, 64
zeros in the first.  Two anchors name a line that the log must contain: the file ``….head`` beside the log the
newest one, and the ledger the newest one at the last record.  A line is written first, then its anchors, so a
kill in between leaves a log that is ahead of them.  A log that lacks the line of an anchor was changed; the
next line records that.  A user who can write the log's folder can forge what the ledger does not anchor yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from eemtcleanupd.config.plugin_settings import PluginSettings
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.errors import AuditError
from eemtcleanupd.events import AuditAnchor, AuditEntry
from eemtcleanupd.files import locked, open_own, require_log, write_atomic
from eemtcleanupd.hookspecs import hookimpl
from eemtcleanupd.notifiers.audit_chain import (
    HASH_KEY,
    MISMATCH,
    START,
    backwards,
    chain_backwards,
    lost_anchors,
    lost_ledger,
    position,
    read_head,
)

_LOCK_SECONDS = 30.0
_TEXT_SUFFIX = ".log"


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
    text_copy: bool = Field(
        False,
        description="Whether to copy each entry to a text file, which is path with the suffix .log.",
    )

    @model_validator(mode="after")
    def _copy_is_another_file(self) -> Self:
        if self.text_copy and self.path.suffix == _TEXT_SUFFIX:
            raise ValueError(f"text_copy needs a path that does not end in {_TEXT_SUFFIX}")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The audit log and, if there is one, its text copy."""
        return (self.path, self.path.with_suffix(_TEXT_SUFFIX)) if self.text_copy else (self.path,)


class AuditLog:
    """Writes entries to the log named in the settings."""

    def __init__(self) -> None:
        self._written: dict[Path, AuditAnchor] = {}
        self._expected: dict[Path, AuditAnchor] = {}

    @hookimpl
    def register_settings(self) -> type[AuditLogSettings]:
        return AuditLogSettings

    @hookimpl
    def audit(self, entries: Sequence[AuditEntry], settings: AuditLogSettings) -> None:
        path = settings.path
        self._written[path] = append(
            path,
            entries,
            max_bytes=int(settings.max_mb * 1024 * 1024),
            written=self._written.get(path, START),
            ledger=self._expected.get(path),
        )
        self._expected.pop(path, None)
        for copy in settings.files[1:]:
            append_text(copy, entries)

    def expect(self, path: Path, anchor: AuditAnchor | None) -> None:
        """Compare the log with the ledger's anchor, None if it has none, before the next line is written."""
        self._expected[path] = anchor or START

    def newest(self, path: Path, anchor: AuditAnchor | None) -> AuditAnchor | None:
        """Return the newest line, to which the ledger's anchor can move.

        Args:
            path: the log.
            anchor: what the ledger has now, or None.

        Returns:
            None if the anchor must stay: the log is unreadable, or lacks the anchor or a line that this
            process wrote, and has not recorded that yet.
        """
        required = {self._written.get(path, START), anchor or START}
        try:
            if lost_anchors(chain_backwards(path), required):
                return None
            return next(filter(None, map(position, chain_backwards(path))), None)
        except OSError:
            return None


def append(
    path: Path,
    entries: Sequence[AuditEntry],
    *,
    max_bytes: int,
    written: AuditAnchor = START,
    ledger: AuditAnchor | None = None,
) -> AuditAnchor:
    """Append entries and wait until they are on the disk.

    If the log lacks a line that it must contain, a line ``chain_mismatch`` comes first.

    Args:
        path: the log.
        entries: what to write.
        max_bytes: the size above which the next entry starts a new file.
        written: the newest line that this process wrote.
        ledger: the anchor in the ledger; ``START`` if the ledger has none, None if it was not read.

    Returns:
        The newest line.

    Raises:
        AuditError: writing failed; none of the entries is valid.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            tail = _Tail(path, descriptor)
            first: list[AuditEntry] = []
            if tail.torn:  # an interrupted write, never acknowledged, but kept
                first.append(_own_entry(entries, "torn_line", {"text": tail.torn}))
            mismatch = _mismatch(path, tail, written, ledger)
            if mismatch:
                first.append(_own_entry(entries, MISMATCH, mismatch))
            anchored = 0 if ledger is None else ledger.seq
            lines = [tail.line(entry, anchored) for entry in (*first, *entries)]
            size = os.fstat(descriptor).st_size
            data = "".join(f"{line}\n" for line in lines).encode()
            if tail.torn:
                data = b"\n" + data
            length = os.write(descriptor, data)
            if length != len(data):
                os.ftruncate(descriptor, size)
                raise AuditError(
                    f"Cannot write the audit log {path}: no space left on the device. "
                    "Nothing is deleted without an audit log."
                )
            os.fsync(descriptor)
            head = json.dumps({"seq": tail.seq, "hash": tail.hash})
            write_atomic(path.with_name(f"{path.name}.head"), f"{head}\n".encode("ascii"), mode=None)
            older = path.with_name(f"{path.name}.{tail.seq:09d}")
            if size + length > max_bytes and not os.path.lexists(older):
                path.rename(older)
                _sync_folder(path.parent)
            return AuditAnchor(tail.seq, tail.hash)
    except OSError as error:
        raise _not_written(path, error) from error


def append_text(path: Path, entries: Sequence[AuditEntry]) -> None:
    """Append entries to a text file, in the form of the EEMT documentation.  The file has no hashes.

    Raises:
        AuditError: writing failed.
    """
    lines = [
        f"{entry.timestamp.astimezone():%Y-%m-%d %H:%M:%S},{entry.timestamp.microsecond // 1000:03d}"
        f" - INFO - {json.dumps(_document(entry))}\n"
        for entry in entries
    ]
    try:
        descriptor = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode=0o640)
        with open(descriptor, "ab") as file:  # noqa: PTH123
            file.write("".join(lines).encode())
    except OSError as error:
        raise _not_written(path, error) from error


def require_writable(path: Path) -> None:
    """Check whether entries could be written; create nothing.

    Raises:
        AuditError: they could not.
    """
    try:
        require_log(path, lambda existing: open_own(existing, os.O_RDWR | os.O_APPEND))
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> AuditError:
    return AuditError(
        f"Cannot write the audit log {path} ({error.strerror}). Nothing is deleted without an audit log. "
        "Make it writable, or set notifications.audit_log.path to a writable path."
    )


def _document(entry: AuditEntry) -> dict[str, Any]:
    """Return an entry as JSON values."""
    document: dict[str, Any] = {
        "timestamp": entry.timestamp.isoformat(timespec="milliseconds"),
        "user": entry.user,
        "action": entry.action,
        "details": dict(entry.details),
    }
    if entry.ip_address is not None:
        document["ip_address"] = entry.ip_address
    return document


def _own_entry(entries: Sequence[AuditEntry], action: str, details: dict[str, Any]) -> AuditEntry:
    return AuditEntry(entries[0].timestamp, "eemtcleanupd", action, details)


def _mismatch(
    path: Path, tail: _Tail, written: AuditAnchor, ledger: AuditAnchor | None
) -> dict[str, Any] | None:
    """Return how the log differs from its anchors, None if it does not; the chain then follows the head.

    Only the head and the line of this process lead the chain on.  Others can write to the ledger's database.
    """
    own = {written, read_head(path) or START}
    lost = lost_anchors(chain_backwards(path), {*own, ledger or START})
    had = lost_ledger(chain_backwards(path)) if ledger == START else 0
    if not lost and not had:
        return None
    details: dict[str, Any] = {
        "expected": [{"seq": anchor.seq, "hash": anchor.hash} for anchor in sorted(lost, key=_number)],
        "found": {"seq": tail.seq, "hash": tail.hash},
    }
    if had:
        details["ledger_lost"] = had
    newest = max(lost & own, key=_number, default=START)
    if newest.seq > tail.seq:
        tail.seq, tail.hash = newest.seq, newest.hash
    return details


def _number(anchor: AuditAnchor) -> int:
    return anchor.seq


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open the log under a lock of its own: others can read the log, so they could lock it too."""
    with locked(path.with_name(f"{path.name}.lock"), wait_seconds=_LOCK_SECONDS):
        is_new = not os.path.lexists(path)
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode=0o640)
        try:
            if is_new:
                _sync_folder(path.parent)
            yield descriptor
        finally:
            os.close(descriptor)


class _Tail:
    """The end of the chain: number and hash of its newest line, and incomplete text after it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.torn = next(backwards(descriptor)).decode("utf-8", "replace")
        last = next(chain_backwards(path), None)
        anchor = START if last is None else position(last)
        if anchor is None:
            # The line was changed.  The chain continues from here, and `audit verify` reports the break.
            head = read_head(path) or START
            anchor = AuditAnchor(head.seq, sha256(last or b"").hexdigest())
        self.seq, self.hash = anchor.seq, anchor.hash

    def line(self, entry: AuditEntry, anchored: int) -> str:
        """Return the next line of the chain, and advance to it.

        ``anchored`` is the number that the ledger has, 0 to leave it out.
        """
        self.seq += 1
        line: dict[str, Any] = {"seq": self.seq, **_document(entry)}
        if anchored:
            line["anchor"] = anchored
        body = json.dumps({**line, "prev": self.hash})[:-1]
        self.hash = sha256(body.encode()).hexdigest()
        return f'{body}{HASH_KEY}{self.hash}"}}'


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
