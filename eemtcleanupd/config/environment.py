"""Environment variables that set configuration keys, including the names used by the EEMT scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eemtcleanupd.formatting import printable, shortened

BASE_DIR = "EEMT_BASE_DIR"
"""The variable that names the base folder of ``paths.*`` keys that no other source sets."""

CONFIG_FILE = "EEMT_CLEANUP_CONFIG"
"""The variable that names the configuration file."""

_SWITCH = {"true": True, "1": True, "yes": True, "on": True}
_SWITCH |= {"false": False, "0": False, "no": False, "off": False}


def _switch(text: str) -> object:
    return _SWITCH[text.lower()]


def _days(text: str) -> object:
    hours = float(text) * 24
    if not hours >= 0:  # a later error message would show the value in hours
        raise ValueError(text)
    return hours


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable, the key that it sets, and the parser of its text."""

    name: str
    key: str
    read: Callable[[str], object] = str


VARIABLES = (
    Variable("EEMT_SUCCESS_RETENTION_HOURS", "retention.successful_jobs.hours", float),
    Variable("EEMT_FAILED_RETENTION_HOURS", "retention.failed_jobs.hours", float),
    Variable("EEMT_ENABLE_AUTO_CLEANUP", "schedule.enabled", _switch),
    Variable("EEMT_CLEANUP_SCHEDULE", "schedule.cron"),
    Variable("EEMT_CLEANUP_LOG_LEVEL", "logging.level"),
    Variable("EEMT_CLEANUP_BATCH_SIZE", "performance.batch_size", int),
    Variable("EEMT_CLEANUP_DRY_RUN", "dry_run", _switch),
    Variable("EEMT_CLEANUP_MIN_IDLE_MINUTES", "safety.min_idle_minutes", float),
    Variable("EEMT_RESULTS_DIR", "paths.results"),
    Variable("EEMT_UPLOADS_DIR", "paths.uploads"),
    Variable("EEMT_SUCCESS_RETENTION_DAYS", "retention.successful_jobs.hours", _days),
    Variable("EEMT_DRY_RUN", "dry_run", _switch),
    Variable("EEMT_CLEANUP_ENABLED", "schedule.enabled", _switch),
)
"""Variables that set a key. If two set the same key, the newer name comes first and wins."""

_EXPECTED: Mapping[object, str] = {
    float: "a number",
    _days: "a number of at least 0",
    int: "a whole number",
    _switch: "true or false",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """Values by key, each with the name of its variable, and the warnings and problems found."""

    values: Mapping[str, tuple[object, str]]
    base_dir: str | None
    warnings: tuple[str, ...]
    problems: tuple[str, ...]


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return the text of a variable without surrounding quotes, or None if it is empty or not set.

    A compose file with ``- EEMT_CLEANUP_SCHEDULE="0 2 * * *"`` passes the quotes to the program.
    """
    text = environ.get(name, "").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text or None


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Read all known variables, and warn about names that are probably misspelled."""
    values: dict[str, tuple[object, str]] = {}
    warnings, problems = [], []
    for entry in VARIABLES:
        text = variable(environ, entry.name)
        if text is None:
            continue
        try:
            value = entry.read(text)
        except (ValueError, KeyError):
            shown = shortened(printable(text), 60)
            problems.append(
                f"{entry.name}: {entry.key}: Found '{shown}', but expected {_EXPECTED[entry.read]}."
            )
            continue
        if entry.key not in values:
            values[entry.key] = (value, entry.name)
        elif values[entry.key][0] != value:
            newer = values[entry.key][1]
            warnings.append(
                f"{entry.name} is ignored because {newer}, its newer name, is set to another value."
            )
    warnings += _misspelled(environ)
    return Environment(values, variable(environ, BASE_DIR), tuple(warnings), tuple(problems))


def _misspelled(environ: Mapping[str, str]) -> list[str]:
    known = [*(entry.name for entry in VARIABLES), BASE_DIR, CONFIG_FILE]
    unknown = sorted(name for name in environ.keys() - set(known) if name.startswith("EEMT"))
    if not unknown:
        return []
    from difflib import get_close_matches

    warnings = []
    for name in unknown:
        is_ours = name.startswith("EEMT_") and (name.startswith("EEMT_CLEANUP") or "RETENTION" in name)
        similar = get_close_matches(name, known, n=1, cutoff=0.6 if is_ours else 0.85)
        if is_ours or similar:
            hint = f" Did you mean {similar[0]}?" if similar else ""
            warnings.append(f"The variable {printable(name)} is unknown and has no effect.{hint}")
    return warnings
