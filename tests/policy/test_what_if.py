"""What a retention would keep and free, and when the disk is full."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.policy.what_if import HOURS, Curve, DiskState, EndedJobs, JobAges, longest_retention

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
GB = 2**30


def group(
    hours: float | None,
    job_class: JobClass = JobClass.SUCCESSFUL,
    *,
    jobs: int = 1,
    measured: int | None = None,
    gb: float = 1,
    is_cleaned: bool = False,
    workflow: str | None = None,
) -> EndedJobs:
    """Return jobs that ended so many hours ago, with ``gb`` for each measured one."""
    measured = jobs if measured is None else measured
    ended = None if hours is None else NOW - timedelta(hours=hours)
    return EndedJobs(job_class, workflow, ended, is_cleaned, jobs, measured, round(measured * gb * GB))


def ages(*groups: EndedJobs, policy: Policy | None = None, measured_until: datetime | None = None) -> JobAges:
    found = JobAges(policy or Policy(), NOW, measured_until)
    for each in groups:
        found.add(each)
    return found


def successful(found: JobAges, disk: DiskState | None = None) -> Curve:
    return found.curves(disk)[0]


def kept(curve: Curve) -> dict[float, float]:
    return {point.hours: point.kept_bytes / GB for point in curve.points}


def freed(curve: Curve) -> dict[float, float]:
    return {point.hours: point.freed_bytes / GB for point in curve.points}


def test_a_period_keeps_what_ended_in_it_and_frees_the_rest() -> None:
    curve = successful(ages(group(1.5), group(30.5, jobs=2), group(100.5, jobs=4)))
    assert [kept(curve)[hours] for hours in (6, 24, 48, 72, 120, 168, 2160)] == [1, 1, 3, 3, 7, 7, 7]
    assert [freed(curve)[hours] for hours in (6, 24, 48, 72, 120, 168)] == [6, 6, 4, 4, 0, 0]
    assert (curve.hours, curve.current.kept_bytes, curve.alternative.hours) == (168, 7 * GB, 72)


def test_cleaned_jobs_count_for_what_a_longer_period_would_keep_but_not_for_what_is_freed() -> None:
    curve = successful(ages(group(10.5), group(300.5, is_cleaned=True, gb=5)))
    assert (kept(curve)[168], kept(curve)[336], freed(curve)[6]) == (1, 6, 1)
    assert curve.jobs == 1


def test_the_total_adds_the_other_class_at_its_own_period() -> None:
    found = ages(group(1.5), group(5.5, JobClass.FAILED, gb=2), group(20.5, JobClass.FAILED, gb=4))
    both = found.curves(None)
    totals = [{point.hours: point.total_bytes / GB for point in curve.points} for curve in both]
    assert (totals[0][168], totals[1][12], totals[1][24]) == (3, 3, 7)
    assert (freed(both[0])[6], freed(both[1])[12]) == (0, 4)


def test_unknown_sizes_count_with_the_mean_of_the_class_else_of_all_jobs() -> None:
    found = ages(group(1.5, jobs=3, measured=2, gb=2), group(1.5, JobClass.FAILED, measured=0))
    both = found.curves(None)
    assert [(curve.estimated, curve.mean_bytes) for curve in both] == [(1, 2 * GB), (1, 2 * GB)]
    assert (kept(both[0])[6], kept(both[1])[6]) == (6, 2)


def test_without_any_known_size_there_are_no_points() -> None:
    for curve in ages(group(1.5, measured=0), group(9.5, JobClass.FAILED, measured=0)).curves(DiskState(0)):
        assert (curve.jobs, curve.estimated, curve.mean_bytes, curve.points, curve.line) == (
            1,
            1,
            None,
            (),
            (),
        )


def test_an_uncleaned_job_that_the_last_run_saw_without_files_has_no_data() -> None:
    old, new = group(50.5, jobs=2, measured=1, gb=3), group(1.5, measured=0)
    curve = successful(ages(old, new, measured_until=NOW - timedelta(hours=5)))
    assert (curve.jobs, curve.estimated, kept(curve)[72]) == (2, 1, 6)


def test_a_cleaned_job_without_a_size_is_counted_apart() -> None:
    found = ages(group(1.5), group(2.5, is_cleaned=True, jobs=3, measured=0))
    assert (found.cleaned_without_size, kept(successful(found))[6]) == (3, 1)


@pytest.mark.parametrize("ended", [None, NOW + timedelta(days=2), datetime(1999, 1, 1, tzinfo=UTC)])
def test_a_job_without_a_valid_end_is_kept_at_any_period(ended: datetime | None) -> None:
    found = ages(group(1.5), replace(group(None, gb=5), ended_at=ended))
    point = successful(found).points[0]
    assert (point.kept_bytes, point.total_bytes, point.freed_bytes) == (GB, 6 * GB, 0)
    assert found.without_end[JobClass.SUCCESSFUL].jobs == 1


def test_a_held_job_is_kept_at_any_period() -> None:
    found = ages(group(200.5, jobs=3))
    found.hold(group(200.5))
    point = successful(found).current
    assert (point.kept_bytes, point.total_bytes, point.freed_bytes) == (0, GB, 2 * GB)


def test_an_override_keeps_its_own_period() -> None:
    policy = Policy(overrides={("eemt", JobClass.SUCCESSFUL): timedelta(hours=48)})
    found = ages(
        group(30.5, workflow="eemt"),
        group(60.5, workflow="eemt", gb=8),
        group(30.5, workflow="sol"),
        policy=policy,
    )
    curve = successful(found)
    assert (kept(curve)[6], kept(curve)[168], freed(curve)[6], freed(curve)[168]) == (1, 2, 9, 8)


def test_a_job_that_another_rule_keeps_or_that_has_no_data_is_not_freed() -> None:
    found = ages(group(200.5, jobs=5))
    found.keep(group(200.5))
    found.drop(group(200.5))
    point = successful(found).current
    assert (point.kept_bytes, point.total_bytes, point.freed_bytes) == (0, GB, 3 * GB)


def test_the_configured_period_frees_what_the_next_run_cleans() -> None:
    found = ages(group(168.4, jobs=3), group(300.5))
    found.set_due([group(168.4, jobs=2)], {JobClass.SUCCESSFUL: 5 * GB})
    assert [freed(successful(found))[hours] for hours in (120, 168, 720)] == [4, 7, 0]
    assert successful(found).current.freed_bytes == 7 * GB


def test_a_period_of_a_century_is_compared_as_well() -> None:
    policy = Policy(successful=timedelta(hours=1_000_000), failed=timedelta())
    found = ages(group(1.5), group(2000.5), policy=policy)
    curve = successful(found, DiskState(GB))
    assert [kept(curve)[hours] for hours in (6.0, 2160.0, 1_000_000.0)] == [1, 2, 2]
    assert found.curves(None)[1].hours == 0
    assert longest_retention(policy) == timedelta(days=3650)


def test_the_alternative_is_at_most_half_of_the_period_or_the_next_longer_one() -> None:
    for hours, expected in ((0, HOURS[0]), (6, HOURS[1]), (12, HOURS[0]), (1_000_000, HOURS[-1])):
        curve = successful(ages(group(1.5), policy=Policy(successful=timedelta(hours=hours))))
        assert curve.alternative.hours == expected


# -- the disk --------------------------------------------------------------------------------------


def steady(days: int = 30, gb_per_hour: int = 1) -> list[EndedJobs]:
    """One job an hour; those older than a week are cleaned."""
    return [group(hour + 0.5, gb=gb_per_hour, is_cleaned=hour >= 168, jobs=1) for hour in range(days * 24)]


def full_in_hours(curve: Curve, hours: float) -> float | None:
    at = next(point for point in curve.points if point.hours == hours).disk_full_at
    return None if at is None else (at - NOW) / timedelta(hours=1)


def test_the_disk_fills_only_while_a_longer_period_grows() -> None:
    curve = successful(ages(*steady()), DiskState(free_bytes=100 * GB))
    assert curve.bytes_per_day == 24 * GB
    assert full_in_hours(curve, 72) is None
    assert full_in_hours(curve, 168) is None
    assert full_in_hours(curve, 336) == pytest.approx(100, abs=3)  # nothing expires for 168 hours
    assert full_in_hours(curve, 2160) == pytest.approx(100, abs=12)


def test_a_disk_that_other_data_fills_is_full_later_with_a_shorter_period() -> None:
    curve = successful(ages(*steady()), DiskState(free_bytes=240 * GB, other_bytes_per_day=24 * GB))
    assert full_in_hours(curve, 168) == pytest.approx(240, abs=2)
    assert full_in_hours(curve, 72) == pytest.approx(240 + 96, abs=2)
    assert full_in_hours(curve, 336) == pytest.approx(120, abs=3)  # twice as fast


def test_expired_data_uses_its_space_until_its_grace_ends() -> None:
    # In the trash are the jobs of the last day before they were cleaned, so that its size stays as it is.
    disk = DiskState(free_bytes=10 * GB, trash_bytes=24 * GB, grace=timedelta(hours=24))
    curve = successful(ages(*steady()), disk)
    assert full_in_hours(curve, 168) is None
    without = successful(ages(*steady()), replace(disk, trash_bytes=0))
    assert full_in_hours(without, 168) == pytest.approx(10, abs=2)


def test_without_a_readable_disk_no_day_is_known() -> None:
    assert {point.disk_full_at for point in successful(ages(*steady())).points} == {None}


def test_a_full_disk_is_full_now() -> None:
    assert full_in_hours(successful(ages(group(1.5)), DiskState(0)), 168) == 0
