"""Reloads the configuration on request or when its file changes, and applies it as a whole or rejects it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
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
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.daemon.messages import Enqueue, Notice
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import read_regular

log = logging.getLogger(__name__)

_QUIET_SECONDS = 0.5
# Without the events of reading: otherwise each reload would cause the next one.
_EVENTS: list[type[FileSystemEvent]] = [
    FileModifiedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    FileClosedEvent,
    DirMovedEvent,
]
# Kubernetes replaces a ConfigMap by renaming this link in the folder of the files.
_CONFIG_MAP_LINK = "..data"


@dataclass(frozen=True, slots=True)
class ReloadState:
    """Result of the last attempt to load the configuration; ``attempts`` includes the first one."""

    attempts: int
    loaded_at: datetime
    attempted_at: datetime
    error: str | None = None


class ConfigManager:
    """Holds the configuration in force, which ``read`` loads from file, environment and options.

    Raises:
        ConfigError: the first attempt to load failed.
    """

    def __init__(self, read: Callable[[], Loaded], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self.loaded = read()
        self._attempted_digest = self.digest()
        now = clock()
        self.state = ReloadState(1, now, now)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.loaded.config

    def digest(self) -> str | None:
        """Return a hash of the file's current content, None when it cannot be read."""
        with suppress(OSError):
            if self.loaded.file is not None:
                return hashlib.sha256(read_regular(self.loaded.file)).hexdigest()
        return None

    def has_changed(self) -> bool:
        """Tell whether the file has changed since the last attempt to load it."""
        return self.digest() != self._attempted_digest

    def reload(self, prepare: Callable[[Loaded], None]) -> Loaded:
        """Load the configuration, call ``prepare`` with it, put it in force and return it.

        ``prepare`` does everything else that can fail.

        Raises:
            ConfigError: it is invalid; the previous one stays in force, and ``state`` has the error.
        """
        now, attempts, before = self._clock(), self.state.attempts + 1, self.loaded
        self._attempted_digest = self.digest()
        try:
            new = self._read()
            _require_content(before, new)
            _require_same_database(before, new)
            prepare(new)
        except ConfigError as error:
            self.state = replace(self.state, attempts=attempts, attempted_at=now, error=str(error))
            raise
        # From here on nothing can fail.
        self.loaded = new
        self.state = ReloadState(attempts, now, now)
        return new


def _require_content(before: Loaded, new: Loaded) -> None:
    """Refuse a missing or empty file: an editor's half-done save must not put all defaults in force."""
    if before.file is None:
        return
    if new.file != before.file:
        raise ConfigError(
            f"The configuration file {before.file} does not exist any more. Restore it. "
            "To use another file, restart the daemon."
        )
    if new.is_empty and not before.is_empty:
        raise ConfigError(
            f"The configuration file {before.file} is empty. An empty file would put all defaults in force. "
            "To use them, restart the daemon."
        )


def _require_same_database(before: Loaded, new: Loaded) -> None:
    old, wanted = (DatabaseAddress(loaded.config.paths.database) for loaded in (before, new))
    if old != wanted:
        raise ConfigError(
            "The configuration changes paths.database. The running daemon holds the lock of "
            f"{old.redacted}. Restart the daemon to change the database."
        )


class Debouncer:
    """Delays a reload until the file has not changed for a moment, since a save can take several writes."""

    def __init__(self, config_manager: ConfigManager, elapsed: Callable[[], float]) -> None:
        self._config_manager = config_manager
        self._elapsed = elapsed
        self._digest: str | None = None
        self._until: float | None = None

    def begin(self) -> None:
        """Start the delay, with the file's current content."""
        self._digest = self._config_manager.digest()
        self._until = self._elapsed() + _QUIET_SECONDS

    def seconds_left(self) -> float | None:
        """Return the seconds until the delay ends, None when there is none."""
        return None if self._until is None else self._until - self._elapsed()

    def is_over(self) -> bool:
        """Return True once, when the delay has ended and the file differs from the last attempt."""
        if self._until is None or self._elapsed() < self._until:
            return False
        if self._config_manager.digest() != self._digest:
            self.begin()
            return False
        self._until = None
        return self._config_manager.has_changed()


class FileWatch(FileSystemEventHandler):
    """Puts ``CONFIG_FILE_CHANGED`` into the inbox when a file might have changed.

    It watches the folder, since editors replace the file by renaming.  Where watching fails (too many
    watches or inotify instances, a network filesystem), the daemon still compares the content regularly.
    """

    def __init__(self, file: Path, put: Enqueue) -> None:
        self._names = {file.name, _CONFIG_MAP_LINK}
        self._put = put
        self._observer: BaseObserver | None = None
        try:
            self._observer = Observer()
            self._observer.schedule(self, str(file.parent), event_filter=_EVENTS)
            self._observer.start()
        except OSError as error:
            log.warning("Cannot watch %s (%s). The daemon notices changes within a minute.", file, error)
            if self._observer is not None:
                self._observer.stop()
                self._observer = None

    def close(self) -> None:
        """Stop the watch and its threads."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Put the message if the event is about the file or the link of a ConfigMap."""
        paths = (str(event.src_path), str(event.dest_path))
        if any(path.rpartition("/")[2] in self._names for path in paths):
            self._put(Notice.CONFIG_FILE_CHANGED)
