"""One run at a time, in a thread of its own, so that the daemon goes on listening."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import Progress, RunRequest, clean
from eemtcleanupd.cleanup.context import RunHooks
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.messages import Enqueue, RunCallbacks, RunEnded
from eemtcleanupd.daemon.status import RunStatus
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import Emit, Event, RunReport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """The run that is going on."""

    request: RunRequest
    started_at: datetime
    progress: Progress
    stop: StopFlag
    thread: threading.Thread

    def status(self) -> RunStatus:
        """Return how far it is."""
        progress = self.progress
        return RunStatus(
            self.request.trigger,
            self.started_at,
            progress.jobs_done,
            progress.jobs_total,
            0 if progress.pool is None else progress.pool.bytes_freed,
        )


class Runner:
    """Starts runs and puts their end into the inbox.

    Args:
        put: the inbox.
        emit: is told of every event, in the run's thread.
        clock: where the time comes from.
    """

    def __init__(self, put: Enqueue, emit: Emit, clock: Clock) -> None:
        self._put = put
        self._emit = emit
        self._clock = clock
        self.running: ActiveRun | None = None

    def start(
        self, config: Config, request: RunRequest, guards: RunHooks, order: RunCallbacks | None = None
    ) -> None:
        """Start a run with the configuration of this moment, which it keeps; no other may be going on."""
        progress, stop = Progress(), StopFlag()
        thread = threading.Thread(
            target=self._run,
            args=(config, request, guards, order),
            kwargs={"progress": progress, "stop": stop},
            name=f"run ({request.trigger})",
        )
        self.running = ActiveRun(request, self._clock(), progress, stop, thread)
        thread.start()

    def stop(self) -> None:
        """Ask the run to end in order; its end comes into the inbox all the same."""
        if self.running is not None:
            self.running.stop.set()

    def apply_limits(self, config: Config) -> None:
        """Put the limits of another configuration in force for the run that is going on, if there is one."""
        if self.running is not None:
            self.running.progress.apply_limits(config)

    def ended(self) -> None:
        """Forget the run whose end came out of the inbox."""
        if self.running is not None:
            self.running.thread.join()
            self.running = None
        # What a run built up goes back before the long idle time: malloc_trim(3), which only glibc has.
        gc.collect()
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def _run(
        self,
        config: Config,
        request: RunRequest,
        guards: RunHooks,
        order: RunCallbacks | None,
        *,
        progress: Progress,
        stop: StopFlag,
    ) -> None:
        result: RunReport | CleanupError | None = None

        def emit(event: Event) -> None:
            self._emit(event)
            if order is not None:
                order.emit(event)

        try:
            result = clean(
                config,
                request,
                emit=emit,
                stop=stop,
                clock=self._clock,
                progress=progress,
                hooks=guards,
            )
        except CleanupError as error:
            result = error
        except Exception:  # a bug must end one run, not the daemon
            log.exception("The run broke off; the next one goes on where it stopped")
        finally:
            self._put(RunEnded(request.trigger, result))
            if order is not None:
                order.done(result)
