"""Deletion by the workers of a Dask cluster: ``performance.executor: dask``.

The pool uses a cluster like its helper processes: the cluster removes a folder or declines it, and the pool
then removes a declined folder itself.  So no failure of a cluster is an error of a run.  When a worker dies,
the scheduler gives its task to another worker.  What the dead worker removed is unknown and is not counted.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, TimeoutError as PendingError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.dask_task import SLICE_SECONDS, ItemLocation, TaskResult, remove_subtree
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.tree import FolderTask, OnSubfolder, RemovalStats
from eemtcleanupd.installation import add_extra

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""The timeout of the connection to the scheduler."""
CHECK_INTERVAL_SECONDS = 2.0
"""How often a thread that waits for a task checks the cluster."""
REPLY_TIMEOUT_SECONDS = 5.0
"""The timeout for a reply of the scheduler."""
_NO_WORKER_SECONDS = 10.0  # how long a cluster can be without a worker before it is given up
_FALLBACK = "This machine deletes alone."


@dataclass(frozen=True, slots=True)
class DaskAddress:
    """The scheduler's address (``tls://host:port``) and the files for mutual authentication."""

    scheduler: str
    ca_file: Path
    cert_file: Path
    key_file: Path


def missing_package(executor: str) -> str | None:
    """Return what a run with this executor warns of if its optional package is missing, else None."""
    if executor != "dask" or importlib.util.find_spec("distributed") is not None:
        return None
    return f"performance.executor: dask needs the package distributed. {_FALLBACK} {add_extra('distributed')}"


class DaskExecutor:
    """A connected cluster; ``connect`` creates one.

    Args:
        client: a ``distributed.Client``.
        threads: the number of threads of each worker.
    """

    def __init__(self, client: Any, threads: dict[str, int]) -> None:
        self._client = client
        self._executor: Any = client.get_executor(pure=False)
        self._workers = set(threads)
        self._excluded: set[str] = set()
        self._lock = threading.Lock()
        self._is_disabled = False
        self._last_seen = monotonic_seconds()
        self.threads = sum(threads.values())
        self._free_threads = threading.BoundedSemaphore(self.threads)

    @classmethod
    def connect(cls, address: DaskAddress, warn: Callable[[str], object]) -> DaskExecutor | None:
        """Return the cluster, or None after a call of ``warn`` when the cluster cannot be used now."""
        if (problem := missing_package("dask")) is not None:
            warn(problem)
            return None
        # It writes long tracebacks to stderr; this module logs the same failures in one line.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        client = None
        try:
            # The import takes 250 ms.
            distributed: Any = importlib.import_module("distributed")
            security = distributed.Security(
                tls_ca_file=str(address.ca_file),
                tls_client_cert=str(address.cert_file),
                tls_client_key=str(address.key_file),
                require_encryption=True,
            )
            client = distributed.Client(
                address.scheduler,
                security=security,
                timeout=CONNECT_SECONDS,
                set_as_default=False,
                name="eemtcleanupd",
            )
            threads = dict(client.sync(client.scheduler.ncores, callback_timeout=CONNECT_SECONDS))
        except Exception as error:
            if client is not None:
                _close(client)
            warn(f"The Dask cluster {address.scheduler} does not respond: {_first_line(error)}. {_FALLBACK}")
            return None
        if not threads:
            _close(client)
            warn(f"The Dask cluster {address.scheduler} has no workers. {_FALLBACK}")
            return None
        log.info("The Dask cluster %s deletes with %d workers", address.scheduler, len(threads))
        return cls(client, threads)

    def empty_folder(
        self,
        trash: Trash,
        item: str,
        task: FolderTask,
        controls: DeletionControls,
        on_subfolder: OnSubfolder,
    ) -> RemovalStats | None:
        """Let a worker empty a folder of an item.

        Returns:
            What was removed, after ``on_subfolder`` received what is left; None when the cluster declines.
        """
        root = trash.root
        marker = trash.marker()
        if (
            self._is_disabled
            or marker is None
            or controls.stop.is_set()
            or not self._free_threads.acquire(blocking=False)
        ):
            return None
        location = ItemLocation(root.name, str(root.path), root.inode, marker, item)
        try:
            while usable := self._usable_workers():
                only = {"workers": sorted(usable), "allow_other_workers": False} if self._excluded else {}
                limits = replace(
                    controls.limits,
                    # No bucket spans all machines, so each thread gets an equal part of the rate.
                    deletes_per_second=-(-controls.limits.deletes_per_second // self.threads),
                    bytes_per_second=-(-controls.limits.bytes_per_second // self.threads),
                    nice=0,  # the owner of a worker sets its priority
                    idle_io=False,
                )
                future = self._executor.submit(remove_subtree, location, task, limits, **only)
                result = self._result(future, controls.stop)
                if result is None:
                    return None
                if result.unusable_reason is None:
                    for name, label in result.left:
                        on_subfolder(name, label)
                    return result.stats
                self._exclude_worker(result)
        except Exception as error:
            self._disable(_first_line(error))
        finally:
            self._free_threads.release()
        return None

    def _usable_workers(self) -> set[str]:
        return set() if self._is_disabled else self._workers - self._excluded

    def _result(self, future: Future[TaskResult], stop: StopFlag) -> TaskResult | None:
        """Wait for a task; return None when it was given up."""
        ends_at = 0.0
        while True:
            try:
                return future.result(timeout=0.1)
            except PendingError:
                pass
            except CancelledError:
                self._disable("its scheduler ended")
                return None
            now = monotonic_seconds()
            if stop.is_set():
                ends_at = ends_at or now + SLICE_SECONDS + 1
                if now >= ends_at:  # the task never started: a started one has ended by itself
                    future.cancel()
                    return TaskResult("", RemovalStats())
            elif self._is_disabled or not self._is_alive(now):
                future.cancel()
                return None

    def _is_alive(self, now: float) -> bool:
        """Check the workers at intervals; one thread does so for all."""
        if now - self._last_seen < CHECK_INTERVAL_SECONDS or not self._lock.acquire(blocking=False):
            return True
        try:
            live = self._live_workers()
            self._log_lost_workers(live)
            if live - self._excluded:
                self._last_seen = now
                self._workers = live
            elif now - self._last_seen > _NO_WORKER_SECONDS:
                self._disable("it has no workers left")
        finally:
            self._lock.release()
        return not self._is_disabled

    def _live_workers(self) -> set[str]:
        """Return the workers; the timeout detects a frozen scheduler, whose connection stays open."""
        ncores = self._client.scheduler.ncores
        return set(self._client.sync(ncores, callback_timeout=REPLY_TIMEOUT_SECONDS))

    def _log_lost_workers(self, live: set[str]) -> None:
        for worker in sorted(self._workers - live):
            log.warning("Dask worker %s disappeared; its last removals are not counted", worker)

    def _exclude_worker(self, result: TaskResult) -> None:
        if result.worker not in self._excluded:
            log.warning(
                "Dask worker %s does not have the job store mounted: %s",
                result.worker,
                result.unusable_reason,
            )
        self._excluded = self._excluded | {result.worker}
        if not self._workers - self._excluded:
            self._disable("none of its workers has the job store mounted")

    def _disable(self, reason: str) -> None:
        if not self._is_disabled:
            self._is_disabled = True
            log.warning("The Dask cluster is no longer used: %s. %s", reason, _FALLBACK)

    def close(self) -> None:
        """Disconnect from the cluster, which must not have any task of this run."""
        if not self._is_disabled:
            with contextlib.suppress(Exception):
                self._log_lost_workers(self._live_workers())
        _close(self._client)


def _close(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=5)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
