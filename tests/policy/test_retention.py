"""Retention decisions and their reasons."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from eemtcleanupd.config import RetentionConfig
from eemtcleanupd.model import Hold, Job, JobClass
from eemtcleanupd.policy.retention import Policy, decide, end_problem, kept_until

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
MAY = datetime(2025, 5, 1, 12, tzinfo=UTC)
POLICY = Policy.from_config(RetentionConfig())


def job(status: str = "completed", hours: float | None = 200, **fields: Any) -> Job:
    completed_at = None if hours is None else NOW - timedelta(hours=hours)
    return Job(id=fields.pop("id", "job-1"), status=status, completed_at=completed_at, **fields)


@pytest.mark.parametrize(
    ("status", "hours", "clean", "reason_part"),
    [
        ("completed", 168.0, True, "7 days"),
        ("completed", 167.9, False, "0.1 hours"),
        ("success", 200.0, True, "8.3 days"),
        ("failed", 12.0, True, "12 hours"),
        ("failed", 11.0, False, "1.0 hour"),
        ("cancelled", 13.0, True, "13.0 hours"),
        ("running", 9999.0, False, "running"),
        ("pending", None, False, "pending"),
        ("archived", 9999.0, False, "'archived'"),
        ("Completed", 9999.0, False, "'Completed'"),
        ("", 9999.0, False, "''"),
        ("completed", None, False, "completed_at"),
        ("completed", -5.0, False, "future"),
    ],
)
def test_a_job_is_cleaned_only_when_its_retention_has_passed(
    status: str, hours: float | None, clean: bool, reason_part: str
) -> None:
    decision = decide(job(status, hours), POLICY, NOW)
    assert decision.clean is clean
    assert reason_part in decision.reason


@pytest.mark.parametrize(
    ("end", "earlier", "reason_part"),
    [
        (None, {}, "end time unknown"),
        (datetime(1, 1, 1, tzinfo=UTC), {}, "2000"),
        (datetime(1970, 1, 1, tzinfo=UTC), {}, "2000"),
        (datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), {}, "2000"),
        (
            datetime(2026, 1, 1, 12, tzinfo=UTC),
            {"started_at": datetime(2026, 1, 1, 12, 1, tzinfo=UTC)},
            "started",
        ),
        (
            datetime(2026, 1, 1, 12, tzinfo=UTC),
            {"created_at": datetime(2026, 1, 1, 13, tzinfo=UTC)},
            "created",
        ),
        (NOW + timedelta(minutes=6), {}, "future"),
        (NOW + timedelta(days=20_000), {}, "future"),
    ],
)
@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_job_whose_end_cannot_be_trusted_is_kept_and_notable(
    status: str, end: datetime | None, earlier: dict[str, Any], reason_part: str
) -> None:
    impossible = Job("job-1", status, completed_at=end, **earlier)
    for now in (NOW, NOW if reason_part == "future" else NOW + timedelta(days=3650)):
        decision = decide(impossible, POLICY, now)
        assert (decision.clean, decision.notable) == (False, True)
        assert reason_part in decision.reason


@pytest.mark.parametrize(
    ("end", "earlier"),
    [
        (datetime(2000, 1, 1, tzinfo=UTC), {}),
        (NOW, {"started_at": NOW, "created_at": NOW}),
        (NOW + timedelta(minutes=5), {}),
    ],
)
def test_a_possible_end_is_trusted(end: datetime, earlier: dict[str, Any]) -> None:
    assert end_problem(Job("job-1", "completed", completed_at=end, **earlier), NOW) is None


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "a/b", "../x", "/etc", "nul\0", "x" * 256, ".eemtcleanupd-trash", "x" * 5000]
)
def test_a_job_with_an_invalid_name_is_kept_and_notable(bad: str) -> None:
    for field, hostile in (("id", job(id=bad)), ("dem_filename", job(dem_filename=bad))):
        decision = decide(hostile, POLICY, NOW)
        assert not decision.clean
        assert decision.notable
        assert f" {field} " in decision.reason


@pytest.mark.parametrize("odd", ["two\nlines", "ünï", "\udcff", "-rf", "*", "x" * 240])
def test_a_job_with_an_unusual_but_valid_name_is_cleaned(odd: str) -> None:
    assert decide(job(id=odd, dem_filename=odd), POLICY, NOW).clean


def test_a_hold_keeps_a_job_until_it_ends() -> None:
    hold = Hold("job-1", "paper in review", "anna", NOW + timedelta(hours=1))
    kept = decide(job(), POLICY, NOW, hold=hold)
    assert not kept.clean
    for part in ("anna", "2026-03-10 13:00", "paper in review"):
        assert part in kept.reason
    assert decide(job(), POLICY, NOW + timedelta(hours=1), hold=hold).clean
    assert not decide(job(), POLICY, NOW, hold=Hold("job-1", "", "anna")).clean


def test_the_newest_successful_jobs_are_kept_at_any_age() -> None:
    assert not decide(job(), POLICY, NOW, among_last=True).clean


def test_an_override_applies_only_to_its_workflow_and_class() -> None:
    policy = Policy.from_config(
        RetentionConfig.model_validate(
            {"overrides": [{"workflow_type": "eemt", "successful_hours": 336, "failed_hours": 1}]}
        )
    )
    assert not decide(job(workflow_type="eemt"), policy, NOW).clean
    assert decide(job(workflow_type="sol"), policy, NOW).clean
    assert decide(job("failed", 2, workflow_type="eemt"), policy, NOW).clean
    assert not decide(job("failed", 2, workflow_type="sol"), policy, NOW).clean
    assert policy.shortest(JobClass.FAILED) == timedelta(hours=1)
    assert policy.shortest(JobClass.SUCCESSFUL) == timedelta(hours=168)


def test_a_policy_describes_all_its_rules() -> None:
    policy = Policy.from_config(
        RetentionConfig.model_validate(
            {
                "successful_jobs": {"hours": 36, "keep_last": 3},
                "overrides": [{"workflow_type": "eemt", "successful_hours": 336}],
            }
        )
    )
    for part in ("36 hours", "12 hours", "successful eemt jobs for 14 days", "3 jobs", "*.log, *.err, *.out"):
        assert part in str(policy)


@given(
    status=st.sampled_from(["completed", "failed", "running", "archived", "cancelled"]),
    hours=st.none() | st.floats(-1000, 10_000),
    retention=st.floats(0, 1000),
    held=st.booleans(),
)
def test_nothing_live_held_unknown_undated_or_young_is_ever_cleaned(
    status: str, hours: float | None, retention: float, held: bool
) -> None:
    policy = Policy.from_config(
        RetentionConfig.model_validate(
            {"successful_jobs": {"hours": retention}, "failed_jobs": {"hours": retention}}
        )
    )
    hold = Hold("job-1", "", "anna") if held else None
    decision = decide(job(status, hours), policy, NOW, hold=hold)
    if decision.clean:
        assert status in {"completed", "failed", "cancelled"}
        assert not held
        assert hours is not None
        assert timedelta(hours=hours) >= timedelta(hours=retention)


@given(st.lists(st.floats(0, 5000), min_size=2, max_size=2), st.floats(0, 5000))
def test_a_longer_retention_never_cleans_more(retentions: list[float], age: float) -> None:
    short, long = (
        Policy.from_config(RetentionConfig.model_validate({"successful_jobs": {"hours": hours}}))
        for hours in sorted(retentions)
    )
    assert decide(job(hours=age), short, NOW).clean or not decide(job(hours=age), long, NOW).clean


ENDED = NOW - timedelta(hours=200)
EXPIRED = ENDED + POLICY.successful


@pytest.mark.parametrize(
    ("status", "hours", "hold_hours", "among_last", "expected"),
    [
        ("completed", 100, None, False, NOW + timedelta(hours=68)),
        ("failed", 11, None, False, NOW + timedelta(hours=1)),
        ("completed", 200, None, False, EXPIRED),
        ("completed", 200, 5, False, NOW + timedelta(hours=5)),
        ("completed", 100, 5, False, NOW + timedelta(hours=68)),
        ("completed", 200, -5, False, EXPIRED),
        ("completed", 100, float("inf"), False, None),
        ("completed", 200, None, True, None),
        ("completed", 100, None, True, NOW + timedelta(hours=68)),
        ("completed", None, None, False, None),
        ("completed", -5, None, False, None),
        ("running", 200, None, False, None),
        ("archived", 200, None, False, None),
    ],
)
def test_a_job_is_kept_until_its_retention_and_its_hold_have_ended(
    status: str, hours: float | None, hold_hours: float | None, among_last: bool, expected: datetime | None
) -> None:
    hold = None
    if hold_hours is not None:
        until = None if hold_hours == float("inf") else NOW + timedelta(hours=hold_hours)
        hold = Hold("job-1", "mine", "ann", until)
    decision = decide(job(status, hours), POLICY, NOW, hold=hold, among_last=among_last)
    assert kept_until(decision, POLICY, NOW, hold) == expected
