"""Standard output and error that may fail without ending what is being done.

A run prints while it deletes.  A pipe that was closed, or a disk that is full, must break off neither the run
nor its record: what cannot be written is dropped, and told once at the end.
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

_CLOSED_PIPE = 128 + signal.SIGPIPE  # what a shell says of a program that this signal ended


class SafeStdout(io.FileIO):
    """A file to write to: after the first write that fails it takes everything and keeps nothing.

    Args:
        descriptor: an open file, which stays open.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of some bytes, or drop them; returns how many these are."""
        whole = rest = memoryview(data).cast("B")
        while rest and self.error is None:
            try:
                written = super().write(rest)
            except OSError as error:
                self.error = error
            else:
                if written is None:  # somebody else made it non-blocking: wait as a blocking one does
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        return len(whole)

    def end(self, code: int) -> int:
        """Tell what kept the output from being written; returns the exit code, given that of the command."""
        sys.stdout.flush()
        if self.error is None:
            return code
        if self.error.errno == errno.EPIPE:
            return code or _CLOSED_PIPE
        click.echo(
            f"eemtcleanupd: error: not all of the output could be written: {self.error.strerror}", err=True
        )
        return code or 1


def install() -> SafeStdout:
    """Let no write to standard output or error raise from now on; returns standard output."""
    output, sys.stdout = _forgiving(sys.stdout)
    _, sys.stderr = _forgiving(sys.stderr)
    return output


def _forgiving(stream: Any) -> tuple[SafeStdout, TextIO]:
    """Return the same file, written to in the same way; nowhere for None."""
    if stream is None:  # closed by the caller: else the next file that is opened takes its number
        output = SafeStdout(os.open(os.devnull, os.O_WRONLY))
        return output, io.TextIOWrapper(io.BufferedWriter(output), "utf-8", "backslashreplace")
    output = SafeStdout(stream.fileno())
    text = io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),  # as Python does it itself
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return output, text
