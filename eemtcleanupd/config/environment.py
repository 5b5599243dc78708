"""The environment variables of the user's document, and the older names of the EEMT scripts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eemtcleanupd.errors import ConfigError

_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: the key it sets, how its text is read, and the newer name if it has one."""

    name: str
    key: str
    read: Callable[[str], object]
    newer: str | None = None


def _number(text: str) -> object:
    return float(text)


def _whole(text: str) -> object:
    return int(text)


def _days(text: str) -> object:
    return float(text) * 24


def _switch(text: str) -> object:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("write true or false")


def _text(text: str) -> object:
    return text


_SUCCESS = "retention.successful_jobs.hours"
VARIABLES = (
    Variable("EEMT_SUCCESS_RETENTION_HOURS", _SUCCESS, _number),
    Variable("EEMT_FAILED_RETENTION_HOURS", "retention.failed_jobs.hours", _number),
    Variable("EEMT_ENABLE_AUTO_CLEANUP", "schedule.enabled", _switch),
    Variable("EEMT_CLEANUP_SCHEDULE", "schedule.cron", _text),
    Variable("EEMT_CLEANUP_LOG_LEVEL", "logging.level", str.upper),
    Variable("EEMT_CLEANUP_BATCH_SIZE", "performance.batch_size", _whole),
    Variable("EEMT_CLEANUP_DRY_RUN", "dry_run", _switch),
    Variable("EEMT_RESULTS_DIR", "paths.results", _text),
    Variable("EEMT_UPLOADS_DIR", "paths.uploads", _text),
    Variable("EEMT_SUCCESS_RETENTION_DAYS", _SUCCESS, _days, newer="EEMT_SUCCESS_RETENTION_HOURS"),
    Variable("EEMT_DRY_RUN", "dry_run", _switch, newer="EEMT_CLEANUP_DRY_RUN"),
    Variable("EEMT_CLEANUP_ENABLED", "schedule.enabled", _switch, newer="EEMT_ENABLE_AUTO_CLEANUP"),
)
"""All variables that set a key; the newer name of two comes first and wins."""

BASE_DIR = "EEMT_BASE_DIR"
CONFIG_FILE = "EEMT_CLEANUP_CONFIG"


def read_environment(environ: Mapping[str, str]) -> tuple[dict[str, tuple[object, str]], list[str]]:
    """Return what the environment sets, by key with the variable's name, and warnings.

    An empty variable is not set.  Raises ConfigError for a value that cannot be read.
    """
    values: dict[str, tuple[object, str]] = {}
    warnings = []
    for variable in VARIABLES:
        # `- EEMT_CLEANUP_SCHEDULE="0 2 * * *"` in a compose file passes the quotes along.
        text = environ.get(variable.name, "").strip()
        if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
            text = text[1:-1].strip()
        if not text:
            continue
        try:
            value = variable.read(text)
        except ValueError as error:
            hint = str(error) if variable.read is _switch else "write a number"
            raise ConfigError(f"{variable.name} is {text!r}, which cannot be read: {hint}") from error
        if variable.key in values:
            earlier, name = values[variable.key]
            if earlier != value:
                warnings.append(f"{variable.name} is ignored, since {name} is set to something else")
            continue
        values[variable.key] = (value, variable.name)
    known = [*(variable.name for variable in VARIABLES), BASE_DIR, CONFIG_FILE]
    for name in sorted(environ):
        looks_ours = name.startswith("EEMT_CLEANUP") or (name.startswith("EEMT_") and "RETENTION" in name)
        if looks_ours and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"the environment variable {name} is not known and has no effect{meant}")
    return values, warnings
