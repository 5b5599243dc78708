"""The configuration in force: read anew on request or when its file changes, swapped whole or not at all."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from watchdog.events import (
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Loaded
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.daemon.messages import ConfigFileChanged, Enqueue
from eemtcleanupd.errors import ConfigError

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.5
# Reading the file must not count as touching it, or every reload would cause the next.
_EVENTS: list[type[FileSystemEvent]] = [
    FileModifiedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    FileClosedEvent,
    DirMovedEvent,
]
# Kubernetes swaps a whole ConfigMap by renaming this link beside the files.
_CONFIG_MAP_LINK = "..data"


@dataclass(frozen=True, slots=True)
class ReloadState:
    """How the last attempt to read the configuration went; ``attempts`` counts them, the first included."""

    attempts: int
    loaded_at: datetime
    attempted_at: datetime
    error: str | None = None


class ConfigManager:
    """Holds the configuration in force.

    Args:
        read: reads file, environment and options anew.
        clock: where the time comes from.

    Raises:
        ConfigError: it cannot be read for the first time.
    """

    def __init__(self, read: Callable[[], Loaded], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self.loaded = read()
        self._tried = self.digest()
        now = clock()
        self.state = ReloadState(1, now, now)

    @property
    def file(self) -> Path | None:
        """The file, absolute; None when there is none and the defaults count."""
        return self.loaded.file

    def digest(self) -> str | None:
        """Return a hash of the file as it stands, None when it cannot be read."""
        if self.loaded.file is None:
            return None
        try:
            return hashlib.sha256(self.loaded.file.read_bytes()).hexdigest()
        except OSError:
            return None

    def has_changed(self) -> bool:
        """Tell whether the file differs from what was read, or refused, last."""
        return self.digest() != self._tried

    def reload(self, prepare: Callable[[Loaded], None]) -> Loaded:
        """Read the configuration and put it in force.

        Args:
            prepare: does what else can fail with the new one; called before it is in force.

        Returns:
            The configuration that is in force now.

        Raises:
            ConfigError: it cannot be; the one before stays in force, and ``state`` says why.
        """
        now = self._clock()
        before = self.loaded
        self._tried = self.digest()
        try:
            new = self._read()
            _require_content(before, new)
            _require_same_database(before, new)
            prepare(new)
        except ConfigError as error:
            self.state = replace(
                self.state, attempts=self.state.attempts + 1, attempted_at=now, error=str(error)
            )
            raise
        # From here on nothing can fail.
        self.loaded = new
        self.state = ReloadState(self.state.attempts + 1, now, now)
        return new


def _require_content(before: Loaded, new: Loaded) -> None:
    """Refuse a file that vanished or is empty: a moment of a bad editor must not mean "all defaults"."""
    if before.file is None:
        return
    if new.file != before.file:
        raise ConfigError(f"{before.file} is gone; to use another file, restart the daemon")
    if new.is_empty and not before.is_empty:
        raise ConfigError(f"{before.file} sets nothing: an empty file would put all defaults in force")


def _require_same_database(before: Loaded, new: Loaded) -> None:
    old, wanted = (DatabaseAddress(each.config.paths.database) for each in (before, new))
    if old != wanted:
        raise ConfigError(
            f"paths.database cannot change while the daemon runs ({old.redacted} is locked by it): restart it"
        )


class Debouncer:
    """Waits until the file has been the same for a moment: an editor may be halfway through it.

    Args:
        configuration: knows the file.
        elapsed: seconds that really passed.
    """

    def __init__(self, configuration: ConfigManager, elapsed: Callable[[], float]) -> None:
        self._configuration = configuration
        self._elapsed = elapsed
        self._digest: str | None = None
        self._until: float | None = None

    def begin(self) -> None:
        """Wait from now on, as the file stands."""
        self._digest = self._configuration.digest()
        self._until = self._elapsed() + _SETTLE_SECONDS

    def seconds_left(self) -> float | None:
        """Return how long to wait, None when there is nothing to wait for."""
        return None if self._until is None else self._until - self._elapsed()

    def is_over(self) -> bool:
        """Tell, once, that the file has settled and differs from what was read."""
        if self._until is None or self._elapsed() < self._until:
            return False
        if self._configuration.digest() != self._digest:
            self.begin()
            return False
        self._until = None
        return self._configuration.has_changed()


class FileWatch:
    """Puts a hint into the inbox when something happens to a file.

    The folder is watched, not the file, which editors replace by renaming.  Where that is not possible
    (too many watches, a network filesystem) the daemon's slow look at the content is all there is.
    """

    def __init__(self, file: Path, put: Enqueue) -> None:
        self._observer: BaseObserver | None = Observer()
        try:
            self._observer.schedule(_HintHandler(file.name, put), str(file.parent), event_filter=_EVENTS)
            self._observer.start()
        except OSError as error:
            self._observer = None
            log.warning("%s cannot be watched (%s); changes are noticed within a minute", file, error)

    def close(self) -> None:
        """End the watch and its threads."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()


class _HintHandler(FileSystemEventHandler):
    def __init__(self, name: str, put: Enqueue) -> None:
        self._names = {name, _CONFIG_MAP_LINK}
        self._put = put

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = (str(event.src_path), str(event.dest_path))
        if any(path.rpartition("/")[2] in self._names for path in paths):
            self._put(ConfigFileChanged())
