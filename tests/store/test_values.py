"""Timestamp formats of table jobs and the ledger."""

import shutil
import time
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from eemtcleanupd.store.values import (
    local_timestamp,
    read_creation,
    read_observed_start,
    read_start,
    read_timestamp,
    reload_zones,
    utc_offset,
    utc_timestamp,
    zone_named,
)

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("2026-01-20T02:00:00", datetime(2026, 1, 20, 1, tzinfo=UTC)),
        ("2026-01-20 02:00:00", datetime(2026, 1, 20, 1, tzinfo=UTC)),
        ("2026-01-20T02:00:00.123456", datetime(2026, 1, 20, 1, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-20T02:00:00+00:00", datetime(2026, 1, 20, 2, tzinfo=UTC)),
        ("2026-01-20T02:00:00Z", datetime(2026, 1, 20, 2, tzinfo=UTC)),
        (datetime(2026, 1, 20, 2), datetime(2026, 1, 20, 1, tzinfo=UTC)),  # noqa: DTZ001  (naive as stored)
        # In autumn 02:30 is repeated: the later interpretation keeps data longer.
        ("2026-10-25T02:30:00", datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        # In spring 02:30 is skipped: again the later interpretation.
        ("2026-03-29T02:30:00", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        ("", None),
        ("yesterday", None),
        ("2026-01-20", None),
        ("2026-13-45T00:00:00", None),
        ("0001-01-01T00:00:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        (1769000000, None),
        (b"\xff", None),
        (None, None),
        ("1795010112345", None),
        ("20260101T000000", None),
        ("2026-W03-2T02:00:00", None),
        ("2026-01-20x02:00:00", None),
        ("2026-01-20T02:00:00+23:00", None),  # no zone is so far from UTC
        ("2026-01-20T02:00:00 ", datetime(2026, 1, 20, 1, tzinfo=UTC)),
    ],
)
def test_a_stored_time_is_read_as_utc_with_the_later_interpretation_in_doubt(
    stored: object, expected: datetime | None
) -> None:
    assert read_timestamp(stored, BERLIN) == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/St_Johns", "Pacific/Kiritimati", "local"])
def test_a_written_time_reads_back(zone: str) -> None:
    moment = datetime(2026, 7, 1, 12, 30, 15, 250000, tzinfo=UTC)
    assert read_timestamp(local_timestamp(moment, zone_named(zone)), zone_named(zone)) == moment


def test_ledger_times_are_utc_in_the_format_of_sqlite() -> None:
    assert utc_timestamp(datetime(2026, 7, 1, 1, tzinfo=BERLIN)) == "2026-06-30 23:00:00"


def test_times_with_a_space_and_with_a_t_order_by_time() -> None:
    early, late = read_timestamp("2026-01-20T23:00:00", UTC), read_timestamp("2026-01-20 23:30:00", UTC)
    assert early is not None
    assert late is not None
    assert late - early == timedelta(minutes=30)


def test_a_start_is_read_with_the_earlier_interpretation() -> None:
    assert read_start("2026-10-25T02:30:00", BERLIN) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert read_start("20261025T023000", BERLIN) is None


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "UTC", "America/New_York"])
def test_a_creation_time_without_zone_can_be_utc_or_local(zone: str) -> None:
    moment = datetime(2026, 1, 20, 12, tzinfo=UTC)
    for stored in (utc_timestamp(moment), local_timestamp(moment, ZoneInfo(zone))):
        created = read_creation(stored, ZoneInfo(zone))
        assert created is not None
        assert created <= moment
    assert read_creation(moment.isoformat(), ZoneInfo(zone)) == moment


@pytest.mark.parametrize(
    ("created", "started", "hours"),
    [
        ("2026-01-20 12:00:00", "2026-01-20T13:00:00.500000", (1, 1)),
        ("2026-01-20 12:00:00", "2026-01-20T04:00:00", (-8, 1)),
        ("2026-01-20 12:00:00", "2026-01-21T02:00:00", (14, 1)),
        ("2026-01-20 12:00:00", "2026-01-21T02:00:01", None),
        ("2026-01-20 12:00:00", "2026-01-19T23:59:59", None),
        ("2026-07-20 12:00:00", "2026-07-20T14:00:00", (2, 2)),
        # The job waited during a clock change: neither offset is certain, so the smaller one counts.
        ("2026-10-25 00:30:00", "2026-10-25T02:10:00", (1, 1)),
        ("2026-01-20T12:00:00", "2026-01-20T13:00:00", None),
        ("2026-01-20 12:00:00.5", "2026-01-20T13:00:00", None),
        ("2026-01-20 12:00:00", "2026-01-20 13:00:00", None),
        ("2026-01-20 12:00:00", "2026-01-20T13:00:00Z", None),
        ("2026-01-20 12:00:00", "2026-01-20T13:00:00+01:00", None),
        ("2026-01-20 12:00:00", None, None),
        (1769000000, "2026-01-20T13:00:00", None),
        ("2026-13-20 12:00:00", "2026-01-20T13:00:00", None),
    ],
)
def test_a_start_shows_the_zone_only_in_the_formats_of_the_web_interface(
    created: object, started: object, hours: tuple[int, int] | None
) -> None:
    observed = read_observed_start(created, started, BERLIN)
    hour = timedelta(hours=1)
    found = None if observed is None else (observed.difference // hour, observed.our_offset // hour)
    assert found == hours


@pytest.fixture
def own_zone_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    source = next(Path(path) for path in zoneinfo.TZPATH if (Path(path) / "Etc/GMT-5").exists())
    for name in ("GMT-5", "GMT-6"):
        shutil.copy(source / "Etc" / name, tmp_path / name)
    monkeypatch.setenv("TZ", f":{tmp_path}/Mars")
    zoneinfo.reset_tzpath([str(tmp_path)])
    yield tmp_path
    monkeypatch.undo()
    zoneinfo.reset_tzpath()
    reload_zones()


def test_zones_that_changed_are_read_again(own_zone_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime(2026, 1, 20, 12, tzinfo=UTC)
    for name, hours in (("GMT-5", 5), ("GMT-6", 6)):
        shutil.copy(own_zone_files / name, own_zone_files / "Mars")
        # The C library compares the name in TZ, so a changed file under the same name is read by Python only.
        monkeypatch.setenv("TZ", f":{own_zone_files}/{name}")
        reload_zones()
        assert utc_offset(noon, None) == timedelta(hours=hours)
        assert utc_offset(noon, zone_named("Mars")) == timedelta(hours=hours)
        assert time.timezone == -hours * 3600
