"""Generated stores, kills, clocks and changes by the web application, against what must always be so.

Nothing that a job still needs is touched, nothing is recorded as cleaned that is in place, and nothing is
left that no job needs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies as st

from eemtcleanupd.events import Event
from eemtcleanupd.model import Trigger
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_recovery import run_and_die

SHARES = 20
IDS = ["a", "a_results.zip", "a_b", "A", "b", "\u00e4", "c d", "-x", "b.tif"]
UPLOADS = ["one.tif", "two.tif", "a_b_x.tif", "b_one.tif", "\u00fc.tif"]
RETENTION_HOURS = {"completed": 168, "failed": 12}
LATER_HOURS = 72
# Far enough from each retention, now and after LATER_HOURS, for any zone and clock change.
AGES = [1, 30, 80, 120, 200, 400]
ODD_ENDS = ["n/a", "", "1795010112345", "0001-01-01T00:00:00", "1601-01-01 00:00:00", "2099-01-01T00:00:00"]


@dataclass(frozen=True)
class Row:
    """A generated job; ``odd_end`` replaces its end, ``late_start`` puts the start after it."""

    id: str
    status: str
    age_hours: int
    form: str
    odd_end: str | None
    late_start: bool
    dem: str | None
    parts: frozenset[str]
    held: bool


@dataclass(frozen=True)
class Step:
    """What happens before the last run: ``kind`` and a number for it."""

    kind: str
    number: int
    job: int


rows = st.builds(
    Row,
    id=st.sampled_from(IDS),
    status=st.sampled_from(["completed", "completed", "failed", "running", "pending", "strange"]),
    age_hours=st.sampled_from(AGES),
    form=st.sampled_from(["T", " ", "Z", "+05:30", "micro"]),
    odd_end=st.one_of(st.none(), st.none(), st.none(), st.sampled_from(ODD_ENDS)),
    late_start=st.sampled_from([False, False, False, True]),
    dem=st.one_of(st.none(), st.sampled_from(UPLOADS)),
    parts=st.frozensets(st.sampled_from(["results", "zip", "temp", "own upload", "marker"])),
    held=st.sampled_from([False, False, True]),
)
steps = st.builds(
    Step,
    kind=st.sampled_from(["kill", "kill", "kill", "run", "recover", "rerun", "hold", "delete", "submit"]),
    number=st.integers(1, 70),
    job=st.integers(0, 9),
)
stores = st.fixed_dictionaries(
    {
        "jobs": st.lists(rows, min_size=1, max_size=6, unique_by=lambda row: row.id),
        "zone": st.sampled_from(["UTC", "Asia/Tokyo", "America/New_York"]),
        "steps": st.lists(steps, max_size=3),
        "grace": st.sampled_from([0, 24]),
        "orphans": st.sets(st.sampled_from(["results/nobody", "uploads/nobodys.tif", "temp/none"])),
    }
)


class Life:
    """One store from its making to its last run, with a few lines of truth about it."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.store = JobStore(folder / "store", now=datetime.now(UTC))
        self.zone = ZoneInfo(plan["zone"])
        self.options: dict[str, Any] = {
            "database__timezone": plan["zone"],
            "orphans__delete_after_hours": 24,
            "trash__grace_hours": plan["grace"],
        }
        self.jobs: list[Row] = plan["jobs"]
        self.safe: set[str] = set()
        """Paths that nothing may remove any more: they were in place when a job began to need them."""
        self.store.run(**self.options)  # so that the ledger exists
        for row in self.jobs:
            self._write(row)
        for name in plan["orphans"]:
            self._path(name).mkdir()
        self.bytes = sum(path.lstat().st_blocks * 512 for path in self.store.path.rglob("*"))
        self.made_at = self.store.now
        self.before = self.entries()
        self.always = self.protectors(self.made_at + timedelta(hours=LATER_HOURS))

    def _path(self, label: str) -> Path:
        return self.store.path / label

    def _write(self, row: Row) -> None:
        ended = self.store.now - timedelta(hours=row.age_hours)
        started = ended + timedelta(hours=3 if row.late_start else -2)
        forms = {
            "T": ended.astimezone(self.zone).replace(tzinfo=None).isoformat(timespec="seconds"),
            " ": ended.astimezone(self.zone).replace(tzinfo=None).isoformat(" ", "seconds"),
            "micro": ended.astimezone(self.zone).replace(tzinfo=None).isoformat(timespec="microseconds"),
            "Z": ended.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "+05:30": ended.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(timespec="seconds"),
        }
        is_live = row.status in {"running", "pending"}
        self.store.sql(
            "INSERT INTO jobs (id, workflow_type, status, created_at, started_at, completed_at, dem_filename)"
            " VALUES (?, 'sol', ?, ?, ?, ?, ?)",
            row.id,
            row.status,
            (min(started, ended) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S"),
            started.astimezone(self.zone).replace(tzinfo=None).isoformat(),
            None if is_live else forms[row.form] if row.odd_end is None else row.odd_end,
            row.dem,
        )
        for part, label in self._own(row):
            if part not in row.parts:
                continue
            path = self._path(label)
            if part in {"results", "temp"}:
                path.mkdir(exist_ok=True)
                (path / "raster").write_bytes(b"x" * 5000)
            elif not path.exists():
                path.write_bytes(b"x" * 5000)
        if "marker" in row.parts and (results := self._path(f"results/{row.id}")).is_dir():
            (results / ".eemt-keep").touch()
        if row.dem is not None:
            self._path(f"uploads/{row.dem}").write_bytes(b"x" * 5000)
        if row.held:
            self.store.sql("INSERT INTO cleanup_holds (job_id) VALUES (?)", row.id)

    @staticmethod
    def _own(row: Row) -> Iterator[tuple[str, str]]:
        yield "results", f"results/{row.id}"
        yield "zip", f"results/{row.id}_results.zip"
        yield "temp", f"temp/{row.id}"
        yield "own upload", f"uploads/{row.id}_own.tif"

    # -- steps -------------------------------------------------------------------------------------

    def take(self, step: Step) -> None:
        """Take one step."""
        self.store.wait(seconds=0)
        if step.kind == "kill":
            grace = self.options["trash__grace_hours"]
            more = {key: value for key, value in self.options.items() if key != "trash__grace_hours"}
            run_and_die(self.store, step.number, grace, **more)
        elif step.kind == "recover":
            self.store.request(Trigger.RECOVERY, **self.options)
        elif step.kind == "run":
            self.store.run(**self.options)
        else:
            events = iter(range(1_000_000))
            at = step.number % 8

            def change(_event: Event) -> None:
                if next(events) == at:
                    self._change(step)

            self.store.run(on_event=change, **self.options)

    def _change(self, step: Step) -> None:
        """Change the store as its users do, amid a run; what a job needs from now on must stay."""
        row = self.jobs[step.job % len(self.jobs)]
        if step.kind == "delete":
            self.store.sql("DELETE FROM jobs WHERE id = ?", row.id)
            return
        if step.kind == "rerun":
            self.store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = ?", row.id)
        elif step.kind == "hold":
            self.store.sql("INSERT OR IGNORE INTO cleanup_holds (job_id) VALUES (?)", row.id)
        elif row.dem is not None:
            self.store.sql(
                "INSERT OR IGNORE INTO jobs (id, workflow_type, status, dem_filename)"
                " VALUES ('new', 'sol', 'pending', ?)",
                row.dem,
            )
        exists = bool(self.store.sql("SELECT 1 FROM jobs WHERE id = ?", row.id))
        labels = [label for _, label in self._own(row)] if step.kind != "submit" and exists else []
        if row.dem is not None and exists:
            labels.append(f"uploads/{row.dem}")
        self.safe |= {label for label in labels if self._path(label).exists()}

    # -- truth -------------------------------------------------------------------------------------

    def protectors(self, now: datetime) -> set[str]:
        """Return the ids of the jobs that keep their data at a time."""
        held = {row[0] for row in self.store.sql("SELECT job_id FROM cleanup_holds")}
        by_id = {row.id: row for row in self.jobs}
        status = {str(row[0]): row[1] for row in self.store.sql("SELECT id, status FROM jobs")}
        keep = {job for job in status if job in held}
        for job, now_status in status.items():
            row = by_id.get(job)
            if row is None or now_status != row.status or row.status not in RETENTION_HOURS:
                keep.add(job)
                continue
            age = now - (self.made_at - timedelta(hours=row.age_hours))
            is_due = age >= timedelta(hours=RETENTION_HOURS[row.status])
            if not is_due or row.odd_end is not None or row.late_start or self._has_marker(row):
                keep.add(row.id)
        return keep

    def _has_marker(self, row: Row) -> bool:
        return "marker" in row.parts and "results" in row.parts

    def entries(self) -> set[str]:
        """Return the entries of all roots."""
        return {
            f"{root}/{name}"
            for root in ("results", "uploads", "temp")
            for name in os.listdir(self.store.path / root)
            if not name.startswith(".")
        }

    def owners(self, label: str) -> set[str]:
        """Return the ids of the jobs that own an entry by its name or by their rows."""
        root, _, name = label.partition("/")
        rows = self.store.sql("SELECT id, dem_filename FROM jobs")
        owners = set()
        for job, dem in rows:
            by_name = {
                "results": name in {job, f"{job}_results.zip"},
                "temp": name == job,
                "uploads": name == dem or name.startswith(f"{job}_"),
            }
            if by_name[root]:
                owners.add(str(job))
        return owners

    def check(self) -> None:
        """Check what must be so."""
        now, there = self.store.now, self.entries()
        keep = self.protectors(now)
        gone = self.before - there
        for label in gone:
            assert not self.owners(label) & keep & self.always, f"{label} is gone"
        assert self.safe <= there
        cleaned = self.store.cleaned()
        for row in self.jobs:
            if row.id in cleaned:
                for _, label in list(self._own(row))[:3]:
                    assert label not in there or self.owners(label) - cleaned, f"{label} is in place"
        freed = self.store.sql("SELECT coalesce(sum(bytes_freed), 0) FROM cleanup_runs")[0][0]
        assert int(str(freed)) <= self.bytes

    def check_the_end(self) -> None:
        """Check that nothing is left that no job needs, and that the record is complete."""
        there, keep, cleaned = self.entries(), self.protectors(self.store.now), self.store.cleaned()
        held = {str(row[0]) for row in self.store.sql("SELECT job_id FROM cleanup_holds")}
        for label in there - self.safe:
            name = label.partition("/")[2]
            is_held = any(name in {job, f"{job}_results.zip"} or name.startswith(f"{job}_") for job in held)
            assert self.owners(label) & keep or is_held, f"{label} is left"
        for (job,) in self.store.sql("SELECT id FROM jobs"):
            assert (job in cleaned) or (str(job) in keep), f"{job} was not cleaned"
        assert self.store.sql("SELECT * FROM cleanup_intents WHERE state = 'open'") == []
        log = Counter(self.store.sql("SELECT job_id FROM cleanup_log WHERE action IN ('cleaned', 'trashed')"))
        assert max(log.values(), default=1) == 1


def live(plan: dict[str, Any]) -> None:
    """Build a store, take the steps, and look at it after each and at the end."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        life = Life(folder, plan)
        for step in plan["steps"]:
            life.take(step)
            life.check()
        # Orphans are old after a day; what is in the trash goes a day later.
        for hours in (0, 48, LATER_HOURS):
            life.store.wait(hours=hours)
            life.store.run(**life.options)
            life.check()
        life.check_the_end()
    finally:
        shutil.rmtree(folder)


@given(plan=stores)
@settings(
    max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_some_lives_of_a_store(plan: dict[str, Any]) -> None:
    live(plan)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", range(SHARES))
def test_many_lives_of_a_store(share: int) -> None:
    """Each share has other examples; together there are 2,000."""

    @seed(share)
    @settings(
        max_examples=2000 // SHARES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(plan=stores)
    def run(plan: dict[str, Any]) -> None:
        live(plan)

    run()
