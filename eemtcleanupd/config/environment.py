"""The environment variables of the user's document, and the older names of the EEMT scripts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eemtcleanupd.formatting import printable, shortened

BASE_DIR = "EEMT_BASE_DIR"
"""The folder that the paths of the job store are in when nothing else says where they are."""

CONFIG_FILE = "EEMT_CLEANUP_CONFIG"
"""The configuration file."""

_SWITCH = {"true": True, "1": True, "yes": True, "on": True}
_SWITCH |= {"false": False, "0": False, "no": False, "off": False}


def _switch(text: str) -> object:
    return _SWITCH[text.lower()]


def _days(text: str) -> object:
    hours = float(text) * 24
    if not hours >= 0:  # told in the unit that it was written in
        raise ValueError(text)
    return hours


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: the key that it sets, and how its text is read."""

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
    Variable("EEMT_RESULTS_DIR", "paths.results"),
    Variable("EEMT_UPLOADS_DIR", "paths.uploads"),
    Variable("EEMT_SUCCESS_RETENTION_DAYS", "retention.successful_jobs.hours", _days),
    Variable("EEMT_DRY_RUN", "dry_run", _switch),
    Variable("EEMT_CLEANUP_ENABLED", "schedule.enabled", _switch),
)
"""All variables that set a key.  Of two for one key the newer name comes first, and wins."""

_ALLOWED: Mapping[object, str] = {
    float: "a number",
    _days: "a number of at least 0",
    int: "a whole number",
    _switch: "true or false",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """What the variables say: values by key, each with its variable's name; warnings; problems."""

    values: Mapping[str, tuple[object, str]]
    base_dir: str | None
    warnings: tuple[str, ...]
    problems: tuple[str, ...]


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return a variable's text without the quotes around it, None when it is empty or not set.

    A compose file that says ``- EEMT_CLEANUP_SCHEDULE="0 2 * * *"`` hands the quotes along.
    """
    text = environ.get(name, "").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text or None


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Read all variables that are known, and find those that were probably meant to be."""
    values: dict[str, tuple[object, str]] = {}
    warnings, problems = [], []
    for each in VARIABLES:
        text = variable(environ, each.name)
        if text is None:
            continue
        try:
            value = each.read(text)
        except (ValueError, KeyError):
            shown = shortened(printable(text), 60)
            problems.append(f"{each.name}: {each.key}: found '{shown}', allowed is {_ALLOWED[each.read]}")
            continue
        if each.key not in values:
            values[each.key] = (value, each.name)
        elif values[each.key][0] != value:
            newer = values[each.key][1]
            warnings.append(f"{each.name} is ignored: {newer}, its newer name, is set to something else")
    warnings += _misspelt(environ)
    return Environment(values, variable(environ, BASE_DIR), tuple(warnings), tuple(problems))


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    known = [*(each.name for each in VARIABLES), BASE_DIR, CONFIG_FILE]
    warnings = []
    for name in sorted(environ.keys() - set(known)):
        ours = name.startswith("EEMT_") and (name.startswith("EEMT_CLEANUP") or "RETENTION" in name)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if ours else 0.85)
        if ours or (near and name.startswith("EEMT")):
            meant = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"the variable {printable(name)} is not known and has no effect{meant}")
    return warnings
