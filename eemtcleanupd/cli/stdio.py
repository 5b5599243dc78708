"""Let a run continue when it cannot write to standard output or error.

A run prints while it deletes.  A closed pipe or a full disk must interrupt neither the run nor its record.
Output that cannot be written is dropped and reported once at the end.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CLOSED_PIPE = 128 + signal.SIGPIPE  # the exit status that a shell reports for this signal


class SafeStdout(io.FileIO):
    """An output file that drops all data after the first failed write.

    Args:
        descriptor: an open file; it is not closed with this object.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data`` or drop the rest; return its length in bytes."""
        buffer = rest = memoryview(data).cast("B")
        while rest and self.error is None:
            try:
                written = super().write(rest)
            except OSError as error:
                self.error = error
            else:
                if written is None:  # another process made the file non-blocking: wait until it is writable
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        return len(buffer)

    def end(self, code: int) -> int:
        """Report lost output on stderr; return the exit code of the process, given that of the command."""
        sys.stdout.flush()
        if self.error is None:
            return code
        if self.error.errno == errno.EPIPE:
            return code or _CLOSED_PIPE
        click.echo(f"eemtcleanupd: error: Some output could not be written: {self.error.strerror}.", err=True)
        return code or 1


def install() -> SafeStdout:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams whose writes never raise; return stdout."""
    output, sys.stdout = _safe_stream(sys.stdout)
    _, sys.stderr = _safe_stream(sys.stderr)
    return output


def _safe_stream(stream: Any) -> tuple[SafeStdout, TextIO]:
    """Wrap the file of a stream with the same settings; ``None`` (closed) becomes ``/dev/null``."""
    if stream is None:  # occupy the closed descriptor: the next file opened would get its number
        output = SafeStdout(os.open(os.devnull, os.O_WRONLY))
        return output, io.TextIOWrapper(io.BufferedWriter(output), "utf-8", "backslashreplace")
    output = SafeStdout(stream.fileno())
    text = io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),  # as Python itself does
        stream.encoding,
        "backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return output, text
