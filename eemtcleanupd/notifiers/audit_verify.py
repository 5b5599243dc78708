"""Verification of an audit log: every line of its chain, and the anchors beside it and in the ledger."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from eemtcleanupd.events import AuditAnchor
from eemtcleanupd.notifiers.audit_chain import (
    MAX_NUMBER,
    MISMATCH,
    START,
    lost_anchors,
    opened,
    parsed,
    read_head,
    rotated,
    split_hash,
)


class Finding(StrEnum):
    """What can be wrong with an audit log."""

    CHANGED = "changed"
    MISSING = "missing"
    MOVED = "moved"
    REPLACED = "replaced"
    TRUNCATED = "truncated"
    DELETED = "deleted"
    FOREIGN = "foreign"
    RECORDED = MISMATCH
    HEAD_MISSING = "head_missing"
    ANCHOR_MISSING = "anchor_missing"
    COMPRESSED = "compressed"


@dataclass(frozen=True, slots=True)
class ChainError:
    """A break of the chain; ``line`` counts from 1 in its file."""

    file: Path
    line: int
    message: str
    kind: Finding


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of checking the complete chain.

    ``interrupted`` has the places of incomplete lines that a crash left, which are no errors: the action of
    such a line was not done.
    """

    lines: int
    files: tuple[Path, ...]
    errors: tuple[ChainError, ...]
    interrupted: tuple[tuple[Path, int], ...] = ()


def verify(path: Path, ledger: AuditAnchor | None = None) -> Verification:
    """Check every line of the log and of its older files, and that no line of an anchor is missing.

    Args:
        path: the log.
        ledger: the anchor in the ledger; ``START`` if the ledger has none, None to leave it out.

    Returns:
        The number of lines, and each break: a line that was changed, removed, inserted or moved, lines
        missing at the end, and breaks that a writer has recorded.

    Raises:
        OSError: a file cannot be read.
    """
    older, compressed = rotated(path)
    check = _Check({read_head(path) or START, ledger or START})
    check.file = path
    for file in compressed:
        check.errors.append(
            ChainError(file, 1, "compressed: decompress this file to verify its lines", Finding.COMPRESSED)
        )
    files = [*older, *([path] if os.path.lexists(path) else [])]
    for file in files:
        check.read(file)
    check.finish()
    if check.count and read_head(path) is None:
        head = path.with_name(f"{path.name}.head")
        message = "this file is missing or invalid, so lines might be missing at the end of the log"
        check.errors.append(ChainError(head, 1, message, Finding.HEAD_MISSING))
    if ledger == START and check.anchored:
        check.error(
            Finding.ANCHOR_MISSING,
            f"the job database has lost its anchor, which was line {check.anchored} of the chain or a later "
            "one: the database was replaced or restored",
        )
    return Verification(check.count, tuple(files), tuple(check.errors), tuple(check.interrupted))


class _Check:
    """The state of one verification; ``anchors`` name lines that the log must contain."""

    def __init__(self, anchors: set[AuditAnchor]) -> None:
        self.file = Path()
        self.count = self.anchored = 0
        self.errors: list[ChainError] = []
        self.interrupted: list[tuple[Path, int]] = []
        self._number = 0
        self._newest = START
        self._lost = {anchor for anchor in anchors if anchor.seq}
        self._torn: tuple[Path, int, bytes] | None = None

    def error(self, kind: Finding, message: str, line: int | None = None) -> None:
        """Add an error, by default at the current line."""
        self.errors.append(ChainError(self.file, self._number if line is None else line, message, kind))

    def read(self, file: Path) -> None:
        """Check the lines of a file."""
        self.file, self._number = file, 0
        with opened(file) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
            for self._number, raw in enumerate(stream, start=1):
                self.count += 1
                self._check(raw)

    def finish(self) -> None:
        """Report each anchor whose line is missing.

        An incomplete line at the end is what a crash leaves, unless an anchor shows that it was complete.
        """
        newest = max(self._lost, key=lambda anchor: anchor.seq, default=START)
        torn, self._torn = self._torn, None
        if torn is not None:
            is_crash = not torn[2].endswith(b"\n") and newest.seq <= self._newest.seq
            self._end_torn(torn, is_crash=is_crash)
        if newest == START:
            return
        if self._newest == START:
            self.error(Finding.DELETED, f"the log is missing or empty, but it had line {newest.seq}")
        elif newest.seq > self._newest.seq:
            missing = _lines(self._newest.seq + 1, newest.seq)
            self.error(Finding.TRUNCATED, f"missing at the end: {missing} of the chain", self._number + 1)
        else:
            kind = Finding.REPLACED if newest.seq == self._newest.seq or self.errors else Finding.FOREIGN
            self.error(kind, f"line {newest.seq} of the chain was replaced, or this is another log")

    def _check(self, raw: bytes) -> None:
        line = raw.removesuffix(b"\n")
        entry = parsed(line) if line != raw else None
        torn, self._torn = self._torn, None
        try:
            body, own = split_hash(line.decode())
            claimed, prev = entry["seq"], str(entry["prev"])  # type: ignore[index]  # TypeError if None
            number = min(int(claimed), MAX_NUMBER)  # a number after it could be too long to print
        except (ValueError, KeyError, TypeError, OverflowError):
            if torn is not None:
                self._end_torn(torn, is_crash=False)
            self._torn = (self.file, self._number, raw)
            return
        assert entry is not None  # noqa: S101
        seq = self._newest.seq
        is_unchanged = sha256(body.encode()).hexdigest() == own
        follows = number == seq + 1 and prev == self._newest.hash
        if torn is not None:
            self._end_torn(torn, is_crash=is_unchanged and follows and _records_torn(entry, torn[2]))
        if not is_unchanged:
            self.error(Finding.CHANGED, f"line {number} of the chain was changed")
            number = max(number, seq)
        elif number <= seq:
            self.error(Finding.MOVED, f"line {number} of the chain was inserted or moved here")
            return
        elif number > seq + 1:
            self.error(Finding.MISSING, f"missing here: {_lines(seq + 1, number - 1)} of the chain")
        elif not follows:
            message = "does not match the previous line: one of them was replaced"
            self.error(Finding.REPLACED, f"line {number} of the chain {message}")
        self._newest = AuditAnchor(number, own)
        self._lost = lost_anchors([line], self._lost)
        if isinstance(entry.get("anchor"), int):
            self.anchored = entry["anchor"]
        if entry.get("action") == MISMATCH:
            self.error(
                Finding.RECORDED, f"line {number} of the chain records a break: {entry.get('details')}"
            )

    def _end_torn(self, torn: tuple[Path, int, bytes], *, is_crash: bool) -> None:
        file, number, _ = torn
        if is_crash:
            self.interrupted.append((file, number))
        else:
            message = "not a complete line of an audit log: it was changed or truncated"
            self.errors.append(ChainError(file, number, message, Finding.CHANGED))


def _records_torn(entry: dict[str, Any], torn: bytes) -> bool:
    """Return whether a line records the incomplete line before it."""
    details, text = entry.get("details"), torn.removesuffix(b"\n").decode("utf-8", "replace")
    return entry.get("action") == "torn_line" and isinstance(details, dict) and details.get("text") == text


def _lines(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"
