"""The request to stop, as a flag that a signal handler may set.

``threading.Event.set`` takes a lock, which a handler that interrupts its holder would wait for for ever;
setting an attribute does not.
"""

from __future__ import annotations


class StopFlag:
    """Set once; whoever works looks at it between two system calls."""

    def __init__(self) -> None:
        self._requested = False

    def set(self) -> None:
        """Ask for the work to end after the system call at hand."""
        self._requested = True

    def is_set(self) -> bool:
        """Tell whether the work is to end."""
        return self._requested
