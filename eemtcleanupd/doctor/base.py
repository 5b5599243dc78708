"""What the checks of one job store share."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from eemtcleanupd import remedies
from eemtcleanupd.config import Loaded
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.ledger import Ledger

MAX_NAMES = 5


class Checks:
    """Checks that need an open database; each yields its findings."""

    def __init__(self, loaded: Loaded, database: Database, now: datetime) -> None:
        self._loaded = loaded
        self._config = loaded.config
        self._database = database
        self._now = now
        self._ledger = Ledger(database)
        self._has_ledger = self._ledger.exists()

    def _run(self, *commands: str) -> str:
        return remedies.run(*(remedies.program(self._loaded, command) for command in commands))

    def _set(self, key: str, value: object) -> str:
        return remedies.set_key(self._loaded, key, value)


def can(path: Path, mode: int) -> bool:
    """Check access with the effective ids, as a run does; the real group can differ."""
    return os.access(path, mode, effective_ids=True)
