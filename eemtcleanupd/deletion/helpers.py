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
from eemtcleanupd.deletion.limits import Controls
from eemtcleanupd.deletion.tree import Tally
from eemtcleanupd.deletion.worker import PACKET_BYTES, Request

log = logging.getLogger(__name__)

# Neither the environment nor the site's packages: a helper needs the standard library and this package.
_CODE = "import sys; sys.path.append(sys.argv.pop(1)); from eemtcleanupd.deletion.worker import main; main()"
_PACKAGE_FOLDER = Path(eemtcleanupd.__file__).resolve().parent.parent


class Helpers:
    """Helper processes with some lines each; a line empties one folder at a time.

    Args:
        lines_each: how many folders each empties at a time.
        controls: reach the helpers between any two of their system calls.

    Where a process cannot be started there are fewer lines, or none.
    """

    def __init__(self, lines_each: int, controls: Controls) -> None:
        self._lines_each = lines_each
        self._controls = controls
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._refused = False

    def grow_to(self, processes: int) -> None:
        """Start processes until there are so many; one thread at a time may ask for that."""
        if len(self._processes) >= processes or self._refused:
            return
        stop_fd = self._controls.stop.share()
        try:
            while len(self._processes) < processes:
                self._start(self._lines_each, stop_fd, self._controls.fd)
        except OSError as error:
            self._refused = True
            log.warning("no helper process could be started: %s", error)
        finally:
            os.close(stop_fd)

    def _start(self, lines: int, stop_fd: int, controls_fd: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(lines)]
        try:
            inherited = [stop_fd, controls_fd, *(theirs.fileno() for _, theirs in pairs)]
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-IS", "-c", _CODE, str(_PACKAGE_FOLDER), *map(str, inherited)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    pass_fds=inherited,
                    process_group=0,  # so that a terminal's signals are not theirs
                )
            )
        except OSError:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        for ours, _ in pairs:
            self._lines.put(ours)

    def empty_folder(
        self, item_fd: int, request: Request, found: Callable[[str, str], object]
    ) -> Tally | None:
        """Let a helper empty a folder of an item.

        Returns:
            What was removed; None when no helper is free (or left) to do it.

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
                    return Tally(**message)
                found(*message)
        except OSError as error:
            line.close()
            raise ConnectionResetError(error.errno, gone) from error
        line.close()
        raise ConnectionResetError(errno.ECONNRESET, gone)

    def close(self) -> None:
        """End the processes, which must have nothing in hand."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            process.wait()
        while not self._lines.empty():
            self._lines.get_nowait().close()
