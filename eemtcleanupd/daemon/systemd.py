"""Notifications to systemd: readiness, status text and watchdog, by the protocol of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

_SEND_TIMEOUT_SECONDS = 2.0


class SystemdNotifier:
    """The notification socket of a service manager; without ``NOTIFY_SOCKET`` every method is a no-op."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL of a socket in the abstract namespace, unix(7).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.settimeout(_SEND_TIMEOUT_SECONDS)  # so that a hanging manager cannot block us
        self._status = ""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
        self.watchdog_seconds: float | None = None
        """Maximum time between calls of ``watchdog`` (sd_watchdog_enabled(3)); None without a watchdog."""
        if self._socket is not None and usec.isdigit() and int(usec) and pid == str(os.getpid()):
            self.watchdog_seconds = int(usec) / 1_000_000

    def ready(self) -> None:
        """Report that start-up, or a reload, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a reload has begun; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the daemon is stopping."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the text that ``systemctl status`` shows; an unchanged text is not sent again."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Report to the watchdog that the loop is running."""
        if self.watchdog_seconds is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as error:  # a service manager that restarts must not end the daemon
            log.debug("sd_notify: %s", error)
