"""Executes one cleanup run at a time in its own thread, so that the daemon's loop stays responsive."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import Progress, RunRequest, clean
from eemtcleanupd.cleanup.context import RunHooks
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.messages import Enqueue, RunCallbacks, RunEnded
from eemtcleanupd.daemon.status import RunStatus
from eemtcleanupd.errors import CleanupError, LockHeldError
from eemtcleanupd.events import Emit, Event, RunFailed, RunReport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """The run in progress."""

    request: RunRequest
    started_at: datetime
    progress: Progress
    stop: StopFlag
    thread: threading.Thread
    is_for_client: bool = False
    """Whether a client requested it, perhaps with another retention than the configured one."""

    def status(self) -> RunStatus:
        """Return its progress."""
        return RunStatus.of(self.request.trigger, self.started_at, self.progress)


class Runner:
    """Starts runs and puts ``RunEnded`` into the inbox; ``emit`` receives their events, in their thread.

    ``refused`` receives the event of a run that did not begin, and its request, also in that thread.
    """

    def __init__(
        self, put: Enqueue, emit: Emit, clock: Clock, refused: Callable[[RunFailed, RunRequest], object]
    ) -> None:
        self._put = put
        self._refused = refused
        self._emit = emit
        self._clock = clock
        self.active_run: ActiveRun | None = None

    def start(
        self, config: Config, request: RunRequest, hooks: RunHooks, callbacks: RunCallbacks | None = None
    ) -> None:
        """Start a run, which keeps ``config`` to its end. No other run may be active."""
        progress, stop = Progress(), StopFlag()
        work = partial(clean, config, request, stop=stop, clock=self._clock, progress=progress, hooks=hooks)
        thread = threading.Thread(
            target=self._run, args=(work, request, callbacks), name=f"run ({request.trigger})"
        )
        self.active_run = ActiveRun(request, self._clock(), progress, stop, thread, callbacks is not None)
        thread.start()

    def stop(self, run_id: str | None = None) -> bool:
        """Ask the run to stop in order, and return whether there is one; ``RunEnded`` follows as usual.

        With ``run_id``, another run continues.
        """
        run = self.active_run
        if run is None or run_id not in {None, run.progress.run_id}:
            return False
        run.stop.set()
        return True

    def apply_limits(self, config: Config) -> None:
        """Apply the rate limits of a new configuration to the active run, if any."""
        if self.active_run is not None:
            self.active_run.progress.apply_limits(config)

    def ended(self) -> None:
        """Clean up after the run whose ``RunEnded`` was received."""
        if self.active_run is not None:
            self.active_run.thread.join()
            self.active_run = None
        # Return the run's memory before the long idle time: malloc_trim(3), which only glibc has.
        gc.collect()
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def _run(
        self, work: Callable[..., RunReport], request: RunRequest, callbacks: RunCallbacks | None
    ) -> None:
        result: RunReport | CleanupError | None = None
        failures: list[RunFailed] = []

        def emit(event: Event) -> None:
            self._emit(event)
            if isinstance(event, RunFailed):
                failures.append(event)
            if callbacks is not None:
                callbacks.emit(event)

        try:
            result = work(emit=emit)
        except CleanupError as error:
            result = error
            if failures and not request.dry_run and not isinstance(error, LockHeldError):
                self._refused(failures[0], request)
        except Exception:  # a bug must end one run, not the daemon
            log.exception("The run failed unexpectedly. The next run resumes its work.")
        finally:
            self._put(RunEnded(request.trigger, result))
            if callbacks is not None:
                callbacks.done(result)
