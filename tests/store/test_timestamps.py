"""Timestamp formats of table jobs and the ledger."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from eemtcleanupd.store.timestamps import local_timestamp, read_timestamp, utc_timestamp, zone_named

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
