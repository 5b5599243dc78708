"""Environment variables: current names, older names, and misspelled names."""

from __future__ import annotations

from pathlib import Path

import pytest

from eemtcleanupd.config import Loaded
from eemtcleanupd.config.environment import VARIABLES
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.plugins import load

CWD = Path("/work/dir")
TABLE = [
    ("EEMT_SUCCESS_RETENTION_HOURS", "336", "retention.successful_jobs.hours", 336),
    ("EEMT_SUCCESS_RETENTION_HOURS", "0.5", "retention.successful_jobs.hours", 0.5),
    ("EEMT_FAILED_RETENTION_HOURS", " 24 ", "retention.failed_jobs.hours", 24),
    ("EEMT_ENABLE_AUTO_CLEANUP", "true", "schedule.enabled", True),
    ("EEMT_CLEANUP_SCHEDULE", "0 3 * * 0", "schedule.cron", ["0 3 * * 0"]),
    ("EEMT_CLEANUP_SCHEDULE", '"0 */6 * * *"', "schedule.cron", ["0 */6 * * *"]),
    ("EEMT_CLEANUP_LOG_LEVEL", "debug", "logging.level", "DEBUG"),
    ("EEMT_CLEANUP_BATCH_SIZE", "50", "performance.batch_size", 50),
    ("EEMT_CLEANUP_DRY_RUN", "true", "dry_run", True),
    ("EEMT_CLEANUP_MIN_IDLE_MINUTES", "15", "safety.min_idle_minutes", 15.0),
    ("EEMT_SUCCESS_RETENTION_DAYS", "7.5", "retention.successful_jobs.hours", 180),
    ("EEMT_DRY_RUN", "1", "dry_run", True),
    ("EEMT_CLEANUP_ENABLED", "on", "schedule.enabled", True),
    ("EEMT_RESULTS_DIR", "/data/results", "paths.results", "/data/results"),
    ("EEMT_RESULTS_DIR", "results2", "paths.results", "/work/dir/results2"),
    ("EEMT_UPLOADS_DIR", "'/data/uploads'", "paths.uploads", "/data/uploads"),
    ("EEMT_BASE_DIR", "/srv/eemt", "paths.database", "/srv/eemt/jobs.db"),
    ("EEMT_BASE_DIR", "/srv/eemt", "paths.uploads", "/srv/eemt/uploads"),
    ("EEMT_BASE_DIR", "/srv/eemt", "paths.results", "/srv/eemt/results"),
    ("EEMT_BASE_DIR", "/srv/eemt", "paths.temp", "/srv/eemt/temp"),
    ("EEMT_BASE_DIR", "eemt", "paths.logs", "/work/dir/eemt/logs"),
]


def loaded(**environ: str) -> Loaded:
    return load(None, environ=environ, cwd=CWD)


def values(configuration: Loaded) -> dict[str, tuple[object, str]]:
    return {setting.key: (setting.value, setting.origin) for setting in configuration.settings()}


@pytest.mark.parametrize(("name", "text", "key", "value"), TABLE)
def test_a_variable_sets_its_key(name: str, text: str, key: str, value: object) -> None:
    result = loaded(**{name: text})
    assert values(result)[key] == (value, name)
    assert result.warnings == ()


def test_every_variable_is_in_the_table() -> None:
    assert {variable.name for variable in VARIABLES} | {"EEMT_BASE_DIR"} == {row[0] for row in TABLE}


@pytest.mark.parametrize("name", sorted({row[0] for row in TABLE}))
def test_an_empty_variable_is_not_set(name: str) -> None:
    assert set(loaded(**{name: ' ""'}).origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "YES", "On", "1")),
        *((text, False) for text in ("false", "no", "OFF", "0")),
    ],
)
def test_a_switch_is_read_in_all_its_spellings(text: str, value: bool) -> None:
    assert loaded(EEMT_CLEANUP_DRY_RUN=text).config.dry_run is value


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("EEMT_CLEANUP_DRY_RUN", "maybe", "dry_run"),
        ("EEMT_FAILED_RETENTION_HOURS", "12h", "retention.failed_jobs.hours"),
        ("EEMT_FAILED_RETENTION_HOURS", "nan", "retention.failed_jobs.hours"),
        ("EEMT_FAILED_RETENTION_HOURS", "-3", "retention.failed_jobs.hours"),
        ("EEMT_SUCCESS_RETENTION_DAYS", "-3", "retention.successful_jobs.hours"),
        ("EEMT_CLEANUP_BATCH_SIZE", "1.5", "performance.batch_size"),
        ("EEMT_CLEANUP_SCHEDULE", "daily", "schedule.cron[0]"),
        ("EEMT_CLEANUP_LOG_LEVEL", "LOUD", "logging.level"),
    ],
)
def test_an_invalid_value_is_an_error_with_variable_key_and_value(name: str, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(**{name: text})
    assert str(caught.value).startswith(f"{name}: {key}: ")
    assert text in str(caught.value)


def test_the_newer_of_two_names_wins_with_a_warning() -> None:
    result = loaded(EEMT_SUCCESS_RETENTION_HOURS="24", EEMT_SUCCESS_RETENTION_DAYS="7", EEMT_DRY_RUN="yes")
    assert values(result)["retention.successful_jobs.hours"] == (24, "EEMT_SUCCESS_RETENTION_HOURS")
    assert result.config.dry_run
    (warning,) = result.warnings
    assert "EEMT_SUCCESS_RETENTION_DAYS" in warning


def test_two_names_with_the_same_value_give_no_warning() -> None:
    assert loaded(EEMT_SUCCESS_RETENTION_HOURS="168", EEMT_SUCCESS_RETENTION_DAYS="7").warnings == ()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("EEMT_CLEANUP_DRYRUN", "EEMT_CLEANUP_DRY_RUN"),
        ("EEMT_FAILED_RETENTION_HOUR", "EEMT_FAILED_RETENTION_HOURS"),
        ("EEMT_ENABLE_AUTOCLEANUP", "EEMT_ENABLE_AUTO_CLEANUP"),
    ],
)
def test_a_misspelled_variable_gives_a_warning_with_the_intended_name(name: str, meant: str) -> None:
    (warning,) = loaded(**{name: "1"}).warnings
    assert name in warning
    assert meant in warning


@pytest.mark.parametrize("name", ["EEMT_HOST", "EEMT_SECRET_KEY", "CLEANUP_DRY_RUN", "EEMT_CLEANUP_CONFIG"])
def test_variables_of_other_programs_give_no_warning(name: str) -> None:
    assert loaded(**{name: "1"}).warnings == ()
