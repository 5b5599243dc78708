"""A notifier that writes into a file or runs code of a test, and a dispatcher that sends to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.delivery import Dispatcher
from eemtcleanupd.delivery.queues import MAX_WAITING
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.outbox import DeliveryStats, delivery_stats
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import NOW, JobStore
from tests.plugins.conftest import MakePlugins, Module, module, plugins, store

__all__ = ["module", "plugins", "store"]

_PLUGIN = """
from pathlib import Path
class S(NotifierSettings):
    file: Path
@hookimpl
def register_settings():
    return S
@hookimpl
def notify(event, settings, recipients):
    code = settings.file.with_suffix('.code')
    if code.exists():
        exec(code.read_text())
    with settings.file.open('a') as file:
        print(type(event).__name__, *recipients, sep=':', file=file)
    return 'thanks'
"""


class Recorder:
    """A notifier that records events in a file, or runs the code that a test sets, with its dispatchers."""

    def __init__(self, module: Module, plugins: MakePlugins, store: JobStore, stack: ExitStack) -> None:
        self._name = module("recorder", _PLUGIN)
        self._build, self.store, self._stack = plugins, store, stack
        self._file = store.path / "events"
        self.now = NOW

    def plugins(self, settings: str = "") -> Plugins:
        return self._build(
            f"plugins: [{self._name}]\nblocked_plugins: [prometheus, audit_log]\n"
            f"notifications: {{recorder: {{file: {self._file}{settings}}}}}"
        )

    def open(self, settings: str = "", *, durable: bool = True, max_waiting: int = MAX_WAITING) -> Dispatcher:
        dispatcher = Dispatcher(
            StoreAddress.of_file(self.store.path / "jobs.db"), lambda: self.now, max_waiting=max_waiting
        )
        dispatcher.configure(self.plugins(settings), durable=durable)
        self._stack.callback(dispatcher.close)
        return dispatcher

    def set_code(self, code: str | None) -> None:
        """Let the notifier run this code first; None: no code."""
        file = self._file.with_suffix(".code")
        if code is None:
            file.unlink()
        else:
            file.write_text(code)

    def events(self) -> list[str]:
        return self._file.read_text().split() if self._file.exists() else []

    def stats(self) -> DeliveryStats:
        database = SqliteDatabase(self.store.path / "jobs.db", busy_timeout_seconds=5)
        try:
            return delivery_stats(database).get("recorder", DeliveryStats())
        finally:
            database.close()


@pytest.fixture
def recorder(module: Module, plugins: MakePlugins, store: JobStore) -> Iterator[Recorder]:
    with ExitStack() as stack:
        yield Recorder(module, plugins, store, stack)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = monotonic_seconds() + seconds
    while not condition():
        assert monotonic_seconds() < deadline, "the condition did not become true"
        time.sleep(0.01)


def wake(dispatcher: Dispatcher) -> None:
    """Let the workers check their queues, as they do by themselves after a while."""
    for worker in dispatcher._workers.values():
        worker.wake()
