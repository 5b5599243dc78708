"""The forms of time in table jobs."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from eemtcleanupd.store.timestamps import local_timestamp, read_timestamp, utc_timestamp, zone_named

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("2026-01-20T02:00:00", datetime(2026, 1, 20, 1, tzinfo=UTC)),
        ("2026-01-20 02:00:00", datetime(2026, 1, 20, 1, tzinfo=UTC)),
        ("2026-01-20T02:00:00.123456", datetime(2026, 1, 20, 1, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-20T02:00:00+00:00", datetime(2026, 1, 20, 2, tzinfo=UTC)),
        ("2026-01-20T02:00:00Z", datetime(2026, 1, 20, 2, tzinfo=UTC)),
        (datetime(2026, 1, 20, 2), datetime(2026, 1, 20, 1, tzinfo=UTC)),  # noqa: DTZ001  (naive as stored)
        # Autumn repeats 02:30: the later reading keeps data longer.
        ("2026-10-25T02:30:00", datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        # Spring leaves 02:30 out: the later reading, again.
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
    ],
)
def test_a_stored_time_is_read_as_utc_and_in_doubt_as_the_later_or_not_at_all(
    stored: object, read: datetime | None
) -> None:
    assert read_timestamp(stored, BERLIN) == read


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/St_Johns", "Pacific/Kiritimati", "local"])
def test_what_is_written_reads_back(zone: str) -> None:
    moment = datetime(2026, 7, 1, 12, 30, 15, 250000, tzinfo=UTC)
    assert read_timestamp(local_timestamp(moment, zone_named(zone)), zone_named(zone)) == moment


def test_our_own_tables_hold_utc_as_sqlite_writes_it() -> None:
    assert utc_timestamp(datetime(2026, 7, 1, 1, tzinfo=BERLIN)) == "2026-06-30 23:00:00"


def test_the_forms_of_one_column_order_by_time_once_read() -> None:
    early, late = read_timestamp("2026-01-20T23:00:00", UTC), read_timestamp("2026-01-20 23:30:00", UTC)
    assert early is not None
    assert late is not None
    assert late - early == timedelta(minutes=30)
