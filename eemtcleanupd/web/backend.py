"""Backends of the HTTP interface: the daemon over IPC, or the job store alone when mounted elsewhere.

Methods that are not coroutines can block, so the routes call them in threads.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from os import fdopen
from pathlib import Path
from typing import Any

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import Progress, RunRequest, clean
from eemtcleanupd.clock import monotonic_seconds, system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.status import RunStatus, published_progress
from eemtcleanupd.daemon.status_document import overview
from eemtcleanupd.delivery import Dispatcher
from eemtcleanupd.errors import CleanupError, LockHeldError
from eemtcleanupd.events import Event, RunReport
from eemtcleanupd.formatting import printable
from eemtcleanupd.logs import write_event
from eemtcleanupd.model import Trigger
from eemtcleanupd.plugins import Plugins, load
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import Holder, find_daemon
from eemtcleanupd.web.api_run import ApiRun, Outcome
from eemtcleanupd.web.ipc import (
    ApiRunFinished,
    ApiRunStarted,
    DaemonReply,
    MetricsReply,
    StateReply,
    WorkerChannel,
)

log = logging.getLogger(__name__)
_HEARTBEAT_LIMIT_SECONDS = 90.0
_DRAIN_SECONDS = 30.0


class DaemonBackend:
    """Sends requests to the daemon that started this process.

    The reader of the channel passes the daemon's replies to :meth:`receive`.  A reply about the daemon's
    state is used again for ``state_lifetime_seconds``.
    """

    def __init__(
        self,
        channel: WorkerChannel,
        loaded: Loaded,
        timeout_seconds: float = 5.0,
        state_lifetime_seconds: float = 0.2,
    ) -> None:
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._state_lifetime_seconds = state_lifetime_seconds
        self._numbers = itertools.count(1)
        self._replies: dict[int, Future[Any]] = {}
        self._runs: dict[int, ApiRun] = {}
        self._lock = threading.Lock()
        self._state: tuple[float, Future[StateReply]] | None = None
        self.loaded = loaded
        # Vetoes and the audit log work in this process; the daemon delivers the notifications.
        self.plugins = Plugins(loaded.config)
        self.is_stopping = False

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.loaded.config

    def apply(self, loaded: Loaded) -> None:
        """Put another configuration in force."""
        self.plugins = Plugins(loaded.config, before=self.plugins)
        self.loaded = loaded

    def receive(self, reply: DaemonReply, file: int | None) -> None:
        """Pass a reply of the daemon to the request that waits for it."""
        match reply:
            case StateReply() | MetricsReply():
                with suppress(InvalidStateError):  # the request was cancelled
                    self._replies.pop(reply.number).set_result(reply)
            case ApiRunStarted():
                self._runs[reply.number].on_started(reply.run_id)
            case ApiRunFinished():
                outcome: Outcome = reply.error
                if file is not None:
                    outcome = fdopen(file, "rb")
                elif reply.document is not None:
                    outcome = BytesIO(reply.document.encode("ascii"))
                self._runs.pop(reply.number).on_finished(outcome)

    def _request(self, name: str) -> Future[Any]:
        number, reply = next(self._numbers), Future[Any]()
        self._replies[number] = reply
        self._channel.send({"request": name, "number": number})
        return reply

    def _request_state(self) -> Future[StateReply]:
        with self._lock:
            now = monotonic_seconds()
            state = self._state
            # One request at a time: many would fill the socket of a stopped daemon.
            if state is None or (state[1].done() and now - state[0] > self._state_lifetime_seconds):
                state = self._state = (now, self._request("state"))
            return state[1]

    async def _await_state(self) -> StateReply:
        reply = asyncio.wrap_future(self._request_state())  # other coroutines await the same reply
        return await asyncio.wait_for(asyncio.shield(reply), self._timeout_seconds)

    def run(self, run: ApiRun) -> None:
        """Start a run."""
        number = next(self._numbers)
        self._runs[number] = run
        name = "purge" if run.trigger is Trigger.TRASH else "run"
        body = run.options.model_dump()
        self._channel.send({"request": name, "number": number, "user": run.user, "body": body})

    def stop_run(self, user: str, run_id: str | None) -> None:
        """Ask the daemon to stop its run in order, if it is the run ``run_id`` or that is None."""
        self._channel.send({"request": "stop run", "user": user, "run_id": run_id})

    def overview(self) -> dict[str, Any]:
        """Return the status of the daemon and the job store."""
        status = self._request_state().result(self._timeout_seconds).status
        holder = find_daemon(StoreAddress.of(self.config)) or Holder(status.pid, "", "")
        return overview(self.config, holder, status)

    def metrics(self) -> bytes:
        """Return the daemon's metrics."""
        reply: MetricsReply = self._request("metrics").result(self._timeout_seconds)
        return reply.text.encode()

    async def progress(self) -> RunStatus | None:
        """Return the progress of the daemon's run."""
        return (await self._await_state()).status.run

    async def is_alive(self) -> bool:
        """Return whether the daemon's loop has run recently."""
        with suppress(TimeoutError):
            return (await self._await_state()).seconds_since_heartbeat < _HEARTBEAT_LIMIT_SECONDS
        return False


@dataclass(frozen=True, slots=True)
class _LocalRun:
    trigger: Trigger
    started_at: datetime
    progress: Progress = field(default_factory=Progress)
    stop: StopFlag = field(default_factory=StopFlag)


class LocalBackend:
    """Works on the job store without a daemon; each run has its own thread, and a changed file is read."""

    is_stopping = False  # the application that includes the routes stops them

    def __init__(self, file: Path, environ: dict[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._lock = threading.Lock()
        self._running: _LocalRun | None = None
        self._read()

    def _read(self) -> None:
        self._mtime_ns = self._file.stat().st_mtime_ns
        self._loaded = load(self._file, environ=self._environ, cwd=self._file.parent)
        self.plugins = Plugins(self._loaded.config)

    @property
    def loaded(self) -> Loaded:
        """The configuration of the file, or the previous one if the file is invalid."""
        with self._lock:
            with suppress(OSError, CleanupError):
                if self._file.stat().st_mtime_ns != self._mtime_ns:
                    self._read()
            return self._loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.loaded.config

    def run(self, run: ApiRun) -> None:
        """Start a run."""
        with self._lock:
            if self._running is not None:
                reason = "Another run is in progress, or still sends its messages. Try again in a moment."
                run.on_finished(LockHeldError(reason))
                return
            self._running = _LocalRun(run.trigger, system_clock())
            thread = threading.Thread(target=self._run, args=(run, self._running), name="run (api)")
        thread.start()

    def stop_run(self, user: str, run_id: str | None) -> None:
        """Ask this backend's run to stop in order, if it is the run ``run_id`` or that is None."""
        with self._lock:
            if self._running is not None and run_id in {None, self._running.progress.run_id}:
                log.warning("User %s stops the run in progress", printable(user))
                self._running.stop.set()

    def _run(self, run: ApiRun, running: _LocalRun) -> None:
        callbacks = run.callbacks()
        result: RunReport | CleanupError | None = None
        try:
            config = self.config.with_retention(*callbacks.retention)
            dispatcher = Dispatcher(StoreAddress.of(config), system_clock)
            dispatcher.configure(self.plugins, durable=not config.dry_run)

            def emit(event: Event) -> None:
                write_event(event)
                dispatcher.publish(event)
                callbacks.emit(event)

            try:
                request = RunRequest(
                    user=run.user,
                    trigger=run.trigger,
                    dry_run=config.dry_run,
                    force=callbacks.force,
                    purge_older_than=callbacks.purge_older_than,
                    forget_missing=callbacks.purge_older_than is not None,
                )
                with published_progress(StoreAddress.of(config), run.trigger, running.progress):
                    result = clean(
                        config,
                        request,
                        emit=emit,
                        stop=running.stop,
                        progress=running.progress,
                        hooks=self.plugins,
                    )
            finally:
                dispatcher.drain(_DRAIN_SECONDS)
                dispatcher.close()
        except CleanupError as error:
            result = error
        finally:
            with self._lock:
                self._running = None
            callbacks.done(result)

    def overview(self) -> dict[str, Any]:
        """Return the status of the job store, and of its daemon, if one runs."""
        return overview(self.config, find_daemon(StoreAddress.of(self.config)), None)

    def metrics(self) -> bytes:
        """Return empty metrics: only a daemon has them."""
        return b""

    async def progress(self) -> RunStatus | None:
        """Return the progress of this backend's run."""
        running = self._running
        return (
            None if running is None else RunStatus.of(running.trigger, running.started_at, running.progress)
        )

    async def is_alive(self) -> bool:
        """Return true: there is no scheduler."""
        return True


Backend = DaemonBackend | LocalBackend
