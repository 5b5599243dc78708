"""The workers of a dask cluster, as more hands for the pool: ``performance.executor: dask``.

To the pool a cluster looks as its helper processes do: it takes a folder, or says that it cannot, and then
the folder is removed here.  So nothing that happens to a cluster is an error of a run.  Of a worker that
dies the scheduler gives the task to another one; what it had removed by then is gone and cannot be
known, so it is not counted.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, TimeoutError as NotYetError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.dask_task import SLICE_SECONDS, ItemLocation, TaskResult, remove_subtree
from eemtcleanupd.deletion.helper_process import Request
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.trash import Trash, read_marker
from eemtcleanupd.deletion.tree import RemovalStats

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_LOOK_SECONDS = 2.0  # how often one that waits looks after the cluster
_ANSWER_SECONDS = 5.0  # how long its scheduler may take to answer
_PATIENCE_SECONDS = 10.0  # how long a cluster may be without a worker


_ALONE = "this machine deletes alone"


@dataclass(frozen=True, slots=True)
class DaskAddress:
    """Where the scheduler is (``tls://host:port``), and the files that prove who is who."""

    scheduler: str
    ca_file: Path
    cert_file: Path
    key_file: Path


class DaskExecutor:
    """A cluster that answers; ``connect`` makes one.

    Args:
        client: a ``distributed.Client``.
        threads: its workers and how many threads each has.
    """

    def __init__(self, client: Any, threads: dict[str, int]) -> None:
        self._client = client
        self._executor: Any = client.get_executor(pure=False)
        self._workers = set(threads)
        self._unfit: set[str] = set()
        self._lock = threading.Lock()
        self._lost = False
        self._seen_at = monotonic_seconds()
        self.threads = sum(threads.values())
        self._free = threading.BoundedSemaphore(self.threads)

    @classmethod
    def connect(cls, address: DaskAddress, warn: Callable[[str], object]) -> DaskExecutor | None:
        """Return the cluster; None, with a warning to ``warn``, when it cannot be used now."""
        try:
            # A quarter of a second, and not always installed.
            distributed: Any = importlib.import_module("distributed")
        except ImportError:
            warn(f"performance.executor: dask needs eemtcleanupd[distributed]; {_ALONE}")
            return None
        # It tells on stderr, at length, of what is told here in our words.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        client = None
        try:
            security = distributed.Security(
                tls_ca_file=str(address.ca_file),
                tls_client_cert=str(address.cert_file),
                tls_client_key=str(address.key_file),
                require_encryption=True,
            )
            client = distributed.Client(
                address.scheduler,
                security=security,
                timeout=_CONNECT_SECONDS,
                set_as_default=False,
                name="eemtcleanupd",
            )
            threads = dict(client.sync(client.scheduler.ncores, callback_timeout=_CONNECT_SECONDS))
        except Exception as error:
            if client is not None:
                _close(client)
            warn(f"the cluster {address.scheduler} does not answer ({_words(error)}); {_ALONE}")
            return None
        if not threads:
            _close(client)
            warn(f"the cluster {address.scheduler} has no workers; {_ALONE}")
            return None
        log.info("the cluster %s deletes with %d workers", address.scheduler, len(threads))
        return cls(client, threads)

    def empty_folder(
        self,
        trash: Trash,
        item: str,
        request: Request,
        controls: DeletionControls,
        found: Callable[[str, str], object],
    ) -> RemovalStats | None:
        """Let a worker empty a folder of an item.

        Returns:
            What was removed, once ``found`` was handed what is left; None when it is to be done here.
        """
        root = trash.root
        marker = read_marker(root)
        if self._lost or marker is None or controls.stop.is_set() or not self._free.acquire(blocking=False):
            return None
        place = ItemLocation(root.name, str(root.path), root.inode, marker, item)
        try:
            while fit := self._fit():
                some = {"workers": sorted(fit), "allow_other_workers": False} if self._unfit else {}
                limits = replace(
                    controls.limits,
                    # Nobody keeps count over all machines: each thread gets its share.
                    deletes_per_second=-(-controls.limits.deletes_per_second // self.threads),
                    bytes_per_second=-(-controls.limits.bytes_per_second // self.threads),
                    nice=0,  # that of a worker is its owner's business
                    idle_io=False,
                )
                future = self._executor.submit(remove_subtree, place, request, limits, **some)
                outcome = self._result(future, controls.stop)
                if outcome is None:
                    return None
                if outcome.unusable_reason is None:
                    for each in outcome.left:
                        found(*each)
                    return outcome.tally
                self._leave_out(outcome)
        except Exception as error:
            self._lose(_words(error))
        finally:
            self._free.release()
        return None

    def _fit(self) -> set[str]:
        """Return the workers that may be asked."""
        return set() if self._lost else self._workers - self._unfit

    def _result(self, future: Future[TaskResult], stop: StopFlag) -> TaskResult | None:
        """Wait for a task; None when it is given up."""
        ends_at = 0.0
        while True:
            try:
                return future.result(timeout=0.1)
            except NotYetError:
                pass
            except CancelledError:
                self._lose("its scheduler is gone")
                return None
            now = monotonic_seconds()
            if stop.is_set():
                ends_at = ends_at or now + SLICE_SECONDS + 1
                if now >= ends_at:  # one that has not begun; one that has, ended by itself
                    future.cancel()
                    return TaskResult("", RemovalStats())
            elif self._lost or not self._is_alive(now):
                future.cancel()
                return None

    def _is_alive(self, now: float) -> bool:
        """Look after the workers, every now and then; one thread does it for all."""
        if now - self._seen_at < _LOOK_SECONDS or not self._lock.acquire(blocking=False):
            return True
        try:
            there = self._there()
            self._tell_gone(there)
            if there - self._unfit:
                self._seen_at = now
                self._workers = there
            elif now - self._seen_at > _PATIENCE_SECONDS:
                self._lose("no worker is left")
        finally:
            self._lock.release()
        return not self._lost

    def _there(self) -> set[str]:
        """Return the workers; a scheduler that is frozen keeps its connection, and says nothing."""
        ask = self._client.scheduler.ncores
        return set(self._client.sync(ask, callback_timeout=_ANSWER_SECONDS))

    def _tell_gone(self, there: set[str]) -> None:
        for worker in sorted(self._workers - there):
            log.warning(
                "the cluster's worker %s is gone; what it removed last is not counted",
                worker,
            )

    def _leave_out(self, outcome: TaskResult) -> None:
        if outcome.worker not in self._unfit:
            log.warning(
                "the cluster's worker %s has not the mount: %s", outcome.worker, outcome.unusable_reason
            )
        self._unfit = self._unfit | {outcome.worker}
        if not self._workers - self._unfit:
            self._lose("none of its workers has the mount")

    def _lose(self, why: str) -> None:
        if not self._lost:
            self._lost = True
            log.warning("the cluster is not used any more (%s); %s", why, _ALONE)

    def close(self) -> None:
        """Leave the cluster; it has nothing of ours in hand."""
        if not self._lost:
            with contextlib.suppress(Exception):
                self._tell_gone(self._there())
        _close(self._client)


def _close(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=5)


def _words(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
