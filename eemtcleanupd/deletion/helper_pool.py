"""The pool's end of its helper processes: starts them, sends them folders, ends them."""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import eemtcleanupd
from eemtcleanupd.deletion.helper_process import FORKED, PACKET_BYTES, Request
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.tree import RemovalStats

log = logging.getLogger(__name__)

# Neither the environment nor the site's packages: a helper needs the standard library and this package.
_CODE = (
    "import sys; sys.path.append(sys.argv.pop(1));"
    " from eemtcleanupd.deletion.helper_process import main; main()"
)
_PACKAGE_FOLDER = Path(eemtcleanupd.__file__).resolve().parent.parent
# It takes a twentieth of a second to start. All threads of the pool wait meanwhile, and see no stop.
_PATIENCE_SECONDS = 10.0


class HelperPool:
    """Helper processes with some lines each; a line empties one folder at a time.

    One process is started, and the helpers are forked from it: that takes a millisecond for each where
    another interpreter takes fifty.

    Args:
        lines_each: how many folders each empties at a time.
        controls: reach the helpers between any two of their system calls.

    Where a process cannot be started there are fewer lines, or none.
    """

    def __init__(self, lines_each: int, controls: DeletionControls) -> None:
        self._lines_each = lines_each
        self._count = 0
        self._lines: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._server: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        try:
            self._start(controls)
        except OSError as error:
            _log_refusal(error)

    def _start(self, controls: DeletionControls) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            stop_fd = controls.stop.share()
            try:
                inherited = [stop_fd, controls.fd, theirs.fileno()]
                self._server = subprocess.Popen(
                    [sys.executable, "-IS", "-c", _CODE, str(_PACKAGE_FOLDER), *map(str, inherited)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    pass_fds=inherited,
                    process_group=0,  # so that a terminal's signals are not theirs
                )
            finally:
                os.close(stop_fd)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(_PATIENCE_SECONDS)
        self._requests = ours

    def ensure_processes(self, processes: int) -> None:
        """Start helpers until there are so many; one thread at a time may ask for that."""
        lines: list[list[socket.socket]] = []
        try:
            while self._requests is not None and self._count < processes:
                lines.append(self._fork(self._requests))
                self._count += 1
        except OSError as error:
            if isinstance(error, TimeoutError) and self._server is not None:
                self._server.kill()  # so that no late answer is taken for another's
            self._count = max(processes, self._count)  # it is not asked for as many again
            _log_refusal(error)
        # One of each in turn, since those of one helper compute one at a time.
        for of_each in zip(*lines, strict=True):
            for line in of_each:
                self._lines.put(line)

    def _fork(self, requests: socket.socket) -> list[socket.socket]:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._lines_each)]
        try:
            socket.send_fds(requests, [b"fork"], [theirs.fileno() for _, theirs in pairs])
            answer = requests.recv(PACKET_BYTES)
            if answer != FORKED:
                words = answer.decode(errors="replace") or "the process that forks them is gone"
                raise OSError(words)  # noqa: TRY301  (as when it cannot even be asked)
        except OSError:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        return [ours for ours, _ in pairs]

    def empty_folder(
        self, item_fd: int, request: Request, found: Callable[[str, str], object]
    ) -> RemovalStats | None:
        """Let a helper empty a folder of an item.

        Returns:
            What was removed; None when no helper is free (or left) to do it, and none has begun.

        Raises:
            OSError: the helper is gone; what it removed is not known.
        """
        try:
            line = self._lines.get_nowait()
        except queue.Empty:
            return None
        gone = "the helper process that removed it is gone"
        try:
            socket.send_fds(line, [json.dumps(asdict(request)).encode("ascii")], [item_fd])
        except OSError:  # gone before it had this folder: nothing is lost
            line.close()
            return None
        try:
            while packet := line.recv(PACKET_BYTES):
                message = json.loads(packet)
                if isinstance(message, dict):
                    self._lines.put(line)
                    return RemovalStats(**message)
                found(*message)
        except ConnectionResetError:  # gone without having read the request: nothing is lost
            line.close()
            return None
        except OSError as error:
            line.close()
            raise ConnectionResetError(error.errno, gone) from error
        line.close()
        raise ConnectionResetError(errno.ECONNRESET, gone)

    def close(self) -> None:
        """End the processes, which must have nothing in hand."""
        if self._requests is not None:
            self._requests.close()
        if self._server is not None:
            if not self._count:
                self._server.kill()  # it may not be up yet, and nobody needs it any more
            self._server.communicate()  # closes its input, which ends all of them
        while not self._lines.empty():
            self._lines.get_nowait().close()


def _log_refusal(error: OSError) -> None:
    log.warning("no helper process could be started: %s", error)
