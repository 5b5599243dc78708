"""The pool's side of its helper processes: starts them, sends them folders, ends them."""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import eemtcleanupd
from eemtcleanupd import privileges
from eemtcleanupd.deletion.helper_process import FORKED, PACKET_BYTES
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.tree import FolderTask, OnProgress, OnSubfolder, RemovalStats

log = logging.getLogger(__name__)

# A helper needs only the standard library and this package, not the environment or the site's packages.
HELPER_CODE = (
    "import sys; sys.path.append(sys.argv.pop(1));"
    " from eemtcleanupd.deletion.helper_process import main; main()"
)
# A helper takes 50 ms to start.  During a start, all threads of the pool wait and do not see a stop.
START_TIMEOUT_SECONDS = 10.0
_HELPER_ENDED = "the helper process ended while it removed this"
_PACKAGE_FOLDER = Path(eemtcleanupd.__file__).resolve().parent.parent


class HelperPool:
    """Helper processes with several channels each; a channel empties one folder at a time.

    The pool starts one server process, which forks the helpers.  A fork takes a millisecond; starting another
    interpreter takes 50.  If a process cannot be started, there are fewer channels or none.

    Args:
        channels_per_helper: how many folders each helper empties at a time.
        controls: the stop flag and limits, which helpers check between two system calls.
    """

    def __init__(self, channels_per_helper: int, controls: DeletionControls) -> None:
        self._channels_per_helper = channels_per_helper
        self._count = 0
        self._channels: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._server: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        try:
            self._start(controls)
        except OSError as error:
            _log_start_failure(error)

    def _start(self, controls: DeletionControls) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            stop_fd = controls.stop.share()
            try:
                inherited = [stop_fd, controls.fd, theirs.fileno()]
                with privileges.inherited():
                    self._server = subprocess.Popen(
                        [
                            sys.executable,
                            "-IBS",  # -B: no code of this user in folders of root, see set_aside
                            "-c",
                            HELPER_CODE,
                            str(_PACKAGE_FOLDER),
                            *map(str, inherited),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        pass_fds=inherited,
                        process_group=0,  # keeps the terminal's signals away from the helpers
                    )
            finally:
                os.close(stop_fd)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(START_TIMEOUT_SECONDS)
        self._requests = ours

    def ensure_processes(self, processes: int) -> None:
        """Start helpers up to this number; only one thread at a time can call this."""
        channels: list[list[socket.socket]] = []
        try:
            while self._requests is not None and self._count < processes:
                channels.append(self._fork(self._requests))
                self._count += 1
        except OSError as error:
            if isinstance(error, TimeoutError) and self._server is not None:
                self._server.kill()  # so that a late reply is not mistaken for the next one
            self._count = max(processes, self._count)  # do not try to start these again
            _log_start_failure(error)
        # Alternate between helpers, because the threads of one helper share one interpreter.
        for one_per_helper in zip(*channels, strict=True):
            for channel in one_per_helper:
                self._channels.put(channel)

    def _fork(self, requests: socket.socket) -> list[socket.socket]:
        pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._channels_per_helper)
        ]
        try:
            socket.send_fds(requests, [b"fork"], [theirs.fileno() for _, theirs in pairs])
            reply = requests.recv(PACKET_BYTES)
            if reply != FORKED:
                reason = reply.decode(errors="replace") or "the process that forks helpers ended"
                raise OSError(reason)  # noqa: TRY301  (handled like a failed request)
        except OSError:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        return [ours for ours, _ in pairs]

    def empty_folder(
        self, item_fd: int, task: FolderTask, on_subfolder: OnSubfolder, on_progress: OnProgress
    ) -> RemovalStats | None:
        """Let a helper empty a folder of an item.

        Returns:
            What was removed; None when no helper is available and nothing was started.

        Raises:
            OSError: the helper ended; what it removed is unknown.
        """
        try:
            channel = self._channels.get_nowait()
        except queue.Empty:
            return None
        try:
            socket.send_fds(channel, [json.dumps(asdict(task)).encode("ascii")], [item_fd])
        except OSError:  # the helper ended before it received the folder: nothing is lost
            channel.close()
            return None
        try:
            while packet := channel.recv(PACKET_BYTES):
                message = json.loads(packet)
                if isinstance(message, dict):
                    self._channels.put(channel)
                    return RemovalStats(**message)
                if isinstance(message, int):
                    on_progress(message)
                else:
                    on_subfolder(*message)
        except ConnectionResetError:  # the helper ended before it read the request: nothing is lost
            channel.close()
            return None
        except OSError as error:
            channel.close()
            raise ConnectionResetError(error.errno, _HELPER_ENDED) from error
        channel.close()
        raise ConnectionResetError(errno.ECONNRESET, _HELPER_ENDED)

    def remove_small(
        self, group_fd: int, names: Sequence[str], device: int, on_removed: Callable[[RemovalStats], object]
    ) -> bool:
        """Let a helper remove small entries of a group; ``on_removed`` receives what was removed of each.

        Returns:
            False when no helper is available and nothing was started.

        Raises:
            OSError: the helper ended; what it removed is unknown.
        """
        request = json.dumps({"small": names, "device": device}).encode("ascii")
        if len(request) > PACKET_BYTES:
            return False
        try:
            channel = self._channels.get_nowait()
        except queue.Empty:
            return False
        try:
            socket.send_fds(channel, [request], [group_fd])
        except OSError:  # the helper ended before it received the request: nothing is lost
            channel.close()
            return False
        left = len(names)
        while left:
            try:
                packet = channel.recv(PACKET_BYTES)
            except OSError as error:
                channel.close()
                raise ConnectionResetError(error.errno, _HELPER_ENDED) from error
            if not packet:
                channel.close()
                raise ConnectionResetError(errno.ECONNRESET, _HELPER_ENDED)
            for fields in json.loads(packet):
                on_removed(RemovalStats(**fields))
                left -= 1
        self._channels.put(channel)
        return True

    def close(self) -> None:
        """End the processes; they must have no work."""
        if self._requests is not None:
            self._requests.close()
        if self._server is not None:
            if not self._count:
                self._server.kill()  # it might still be starting, and is not needed
            self._server.communicate()  # closes its input, which ends the server and all helpers
        while not self._channels.empty():
            self._channels.get_nowait().close()


def _log_start_failure(error: OSError) -> None:
    log.warning("Cannot start a helper process: %s. Deletion continues without it.", error)
