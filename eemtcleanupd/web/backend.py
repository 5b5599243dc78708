"""What the HTTP interface works with: a daemon, or, mounted in another program, a job store alone."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from io import BytesIO
from os import fdopen
from pathlib import Path
from typing import Any, Protocol

from eemtcleanupd.cleanup import Progress, RunRequest, clean
from eemtcleanupd.clock import monotonic_seconds, system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.status_document import overview
from eemtcleanupd.delivery import Dispatcher
from eemtcleanupd.errors import CleanupError, LockHeldError
from eemtcleanupd.events import Emit, Event, RunReport
from eemtcleanupd.logs.setup import write_event
from eemtcleanupd.model import Trigger
from eemtcleanupd.plugins import Plugins, load
from eemtcleanupd.store.address import StoreAddress, find_daemon
from eemtcleanupd.store.lock import Holder
from eemtcleanupd.web.api_run import ApiRun, Outcome
from eemtcleanupd.web.ipc import ApiRunFinished, ApiRunStarted, Reply, State, WorkerChannel

_BEAT_LIMIT_SECONDS = 90.0
_DRAIN_SECONDS = 30.0
_ANSWER_SECONDS = 5.0
# Fifty browsers that watch a run are one question.
_STATE_SECONDS = 0.2


class Backend(Protocol):
    """What is asked from coroutines is one itself; the rest answers in any thread, and may take a while."""

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with where each value came from."""

    @property
    def config(self) -> Config:
        """The configuration in force."""

    @property
    def plugins(self) -> Plugins:
        """The plugins in force."""

    def run(self, asked: ApiRun) -> None:
        """Start a run."""

    def overview(self) -> dict[str, Any]:
        """Return how everything is."""

    async def progress(self) -> dict[str, Any] | None:
        """Return how far the run is that goes on, None when there is none."""

    async def is_alive(self) -> bool:
        """Tell whether the scheduler beats."""

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""

    @property
    def is_ending(self) -> bool:
        """Whether answers that go on for long are to end."""


class DaemonBackend:
    """A living daemon at the other end of a line: whatever is to be done goes through its inbox.

    Args:
        line: to the daemon; who reads it gives what comes to :meth:`hear`.
        loaded: the configuration in force.
    """

    def __init__(self, line: WorkerChannel, loaded: Loaded) -> None:
        self._line = line
        self._loaded = loaded
        self._plugins = Plugins(loaded.config)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._runs: dict[int, ApiRun] = {}
        self._lock = threading.Lock()
        self._state: tuple[float, Future[State]] | None = None
        self._is_ending = False

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with where each value came from."""
        return self._loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._loaded.config

    @property
    def plugins(self) -> Plugins:
        """The plugins in force, as this process has them: they judge and write down, but are told nothing."""
        return self._plugins

    def use(self, loaded: Loaded) -> None:
        """Work with another configuration from now on."""
        self._plugins = Plugins(loaded.config, before=self._plugins)
        self._loaded = loaded

    def receive(self, told: Reply | ApiRunStarted | ApiRunFinished, file: int | None) -> None:
        """Take what the daemon says."""
        match told:
            case Reply():
                with suppress(InvalidStateError):  # who asked has gone
                    self._waiting.pop(told.number).set_result(told.value)
            case ApiRunStarted():
                self._runs[told.number].on_started(told.run_id)
            case ApiRunFinished():
                outcome: Outcome = told.error
                if file is not None:
                    outcome = fdopen(file, "rb")
                elif told.document is not None:
                    outcome = BytesIO(told.document.encode("ascii"))
                self._runs.pop(told.number).on_finished(outcome)

    def _ask(self, what: str) -> Future[Any]:
        number, answer = next(self._numbers), Future[Any]()
        self._waiting[number] = answer
        self._line.send({"ask": what, "number": number})
        return answer

    def _ask_state(self) -> Future[State]:
        with self._lock:
            now = monotonic_seconds()
            asked = self._state
            # One at a time: a daemon that is stopped must not find the line full of the same question.
            if asked is None or (asked[1].done() and now - asked[0] > _STATE_SECONDS):
                asked = self._state = (now, self._ask("state"))
            return asked[1]

    def run(self, asked: ApiRun) -> None:
        """Start a run."""
        number = next(self._numbers)
        self._runs[number] = asked
        self._line.send(
            {
                "ask": "run",
                "number": number,
                "user": asked.user,
                "body": {
                    "success_retention_hours": asked.retention[0],
                    "failed_retention_hours": asked.retention[1],
                    "force": asked.force,
                },
            }
        )

    def overview(self) -> dict[str, Any]:
        """Return how everything is."""
        status = self._ask_state().result(_ANSWER_SECONDS).status
        holder = find_daemon(StoreAddress.of(self.config)) or Holder(status.pid, "", "")
        return overview(self.config, holder, status)

    async def progress(self) -> dict[str, Any] | None:
        """Return how far the run is."""
        run = (await self._state_now()).status.run
        if run is None:
            return None
        return {
            "trigger": run.trigger,
            "started_at": run.started_at.isoformat(),
            "jobs_done": run.jobs_done,
            "jobs_total": run.jobs_total,
            "bytes_freed": run.bytes_freed,
        }

    async def is_alive(self) -> bool:
        """Tell whether the loop went round lately."""
        with suppress(TimeoutError):
            return (await self._state_now()).beat_seconds < _BEAT_LIMIT_SECONDS
        return False

    def exposition(self) -> bytes:
        """Return the metrics."""
        return bytes(self._ask("metrics").result(_ANSWER_SECONDS))

    @property
    def is_ending(self) -> bool:
        """Whether the daemon has asked for the end."""
        return self._is_ending

    def end(self) -> None:
        """Let answers that go on for long end."""
        self._is_ending = True

    async def _state_now(self) -> State:
        asked = asyncio.wrap_future(self._ask_state())  # others wait for the same answer
        return await asyncio.wait_for(asyncio.shield(asked), _ANSWER_SECONDS)


class LocalBackend:
    """A job store without a daemon; each run goes on in a thread of its own.

    Args:
        file: the configuration, read again when it changes.
        environ: the environment.
    """

    def __init__(self, file: Path, environ: dict[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._lock = threading.Lock()
        self._running: tuple[Progress, str] | None = None
        self._read()

    def _read(self) -> Loaded:
        stamp = self._file.stat().st_mtime_ns
        self._stamp = stamp
        self._loaded = load(self._file, environ=self._environ, cwd=self._file.parent)
        self._plugins = Plugins(self._loaded.config)
        return self._loaded

    @property
    def loaded(self) -> Loaded:
        """The configuration as the file has it; one that is wrong changes nothing."""
        with self._lock:
            with suppress(OSError, CleanupError):
                if self._file.stat().st_mtime_ns != self._stamp:
                    self._read()
            return self._loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.loaded.config

    @property
    def plugins(self) -> Plugins:
        """The plugins of the configuration."""
        return self._plugins

    def run(self, asked: ApiRun) -> None:
        """Start a run."""
        with self._lock:
            if self._running is not None:
                asked.on_finished(
                    LockHeldError("another run is going on; see its progress, and try again then")
                )
                return
            progress = Progress()
            self._running = (progress, system_clock().isoformat())
        threading.Thread(target=self._run, args=(asked, progress), name="run (api)").start()

    def _run(self, asked: ApiRun, progress: Progress) -> None:
        order = asked.callbacks()
        result: RunReport | CleanupError | None = None
        try:
            config = self.config.with_retention(*order.retention)
            delivery = Dispatcher(StoreAddress.of(config), system_clock)
            delivery.configure(self._plugins, durable=not config.dry_run)
            try:
                result = clean(
                    config,
                    RunRequest(
                        user=asked.user, trigger=Trigger.API, dry_run=config.dry_run, force=order.force
                    ),
                    emit=_all(write_event, delivery.publish, order.emit),
                    progress=progress,
                    hooks=self._plugins,
                )
            finally:
                delivery.drain(_DRAIN_SECONDS)
                delivery.close()
        except CleanupError as error:
            result = error
        finally:
            with self._lock:
                self._running = None
            order.done(result)

    def overview(self) -> dict[str, Any]:
        """Return how everything is."""
        return overview(self.config, find_daemon(StoreAddress.of(self.config)), None)

    async def progress(self) -> dict[str, Any] | None:
        """Return how far the run is."""
        running = self._running
        if running is None:
            return None
        progress, since = running
        return {
            "trigger": Trigger.API,
            "started_at": since,
            "jobs_done": progress.jobs_done,
            "jobs_total": progress.jobs_total,
            "bytes_freed": 0 if progress.pool is None else progress.pool.bytes_freed,
        }

    async def is_alive(self) -> bool:
        """Return true: there is no scheduler."""
        return True

    def exposition(self) -> bytes:
        """Return nothing: there is no daemon to count."""
        return b""

    @property
    def is_ending(self) -> bool:
        """Whether answers are to end: the program that they are mounted in sees to that."""
        return False


def _all(*listeners: Emit) -> Emit:
    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
