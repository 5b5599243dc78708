"""Random stores, interrupted and edited at random steps, against a model of what must stay.

The model does not use the package's rules.  A job's column ``parameters`` has the moment from which its data
can go, or null if it must stay for good; the row, the files and this moment decide everything.  A file's
content is its number, so the model recognizes it wherever it is.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import sys
import tempfile
import threading
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.restore import RestoreRequest, restore
from eemtcleanupd.config import Config
from eemtcleanupd.errors import TrashError
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_recovery import CALLS, KILLED

# Workers share the examples.
SHARES = 20
PHASES = [Phase.generate, *([Phase.shrink] if "STRESS_SHRINK" in os.environ else [])]
EXAMPLES = int(os.environ.get("STRESS_EXAMPLES", "2000"))

TRASH = ".eemtcleanupd-trash"
MARKER = ".eemt-keep"
RETENTION = {"completed": timedelta(hours=168), "failed": timedelta(hours=12)}
LIVE_ROW = "anchor"
ZONES = ["UTC", "Asia/Tokyo", "America/New_York"]
# Prefixes of each other, ids that look like artifacts, other cases and compositions, and invalid names.
IDS = [
    "a",
    "a_b",
    "a_",
    "A",
    "a_results.zip",
    "a b",
    "\u00e9",
    "e\u0301",
    "\u00c9",
    "-x",
    "..",
    "b/c",
    "",
    "b",
]
DEMS = [None, "shared.tif", "a_b_x.tif", "a_x.tif", "Shared.tif", "\u00e9.tif", "e\u0301.tif", "../x", "b"]
# No sum of an age and some waits comes near a retention, not even when the clocks changed.
WAIT = timedelta(hours=30)
AGES = {"completed": [20, 150, 200, 400], "failed": [6, 20, 200]}


class Times(NamedTuple):
    """The times of a row as the web application writes them, and when its data can go."""

    created: str
    started: str | None
    completed: object
    due: float | None


class JobSpec(NamedTuple):
    id: str
    status: str
    age: int
    form: str
    dem: str | None
    files: frozenset[str]
    marker: bool


class Edit(NamedTuple):
    """What the web application or a person does to one job."""

    kind: str
    number: int
    spec: JobSpec


class Step(NamedTuple):
    kind: str
    number: int = 0
    edits: tuple[tuple[int, Edit], ...] = ()
    kill_at: int | None = None


@dataclass(frozen=True)
class Row:
    id: str
    status: str
    dem: str | None
    due: float | None
    cleaned_at: datetime | None

    def claims(self, path: str) -> bool:
        root, _, name = path.partition("/")
        if root == "uploads":
            return name == self.dem or (self.id != "" and name.startswith(f"{self.id}_"))
        return name == self.id or (root == "results" and name == f"{self.id}_results.zip")


@dataclass
class State:
    """What the model remembers: a killed child passes it on to its parent."""

    files: int = 0
    inserted: int = 0
    restored: int = 0
    bytes: int = 0
    keep: dict[str, str] = field(default_factory=dict)
    """Paths that must be in place when the run ends, with their contents."""
    late: set[str] = field(default_factory=set)
    """Contents that came after the job was cleaned, or during a run."""
    shared: set[str] = field(default_factory=set)
    """Paths that several jobs have claimed."""
    edited: set[str] = field(default_factory=set)
    is_reset: bool = False


class TinyStore(JobStore):
    """One folder for all examples: the package's compiled statements and the configuration stay valid."""

    configs: ClassVar[dict[str, Config]] = {}

    def __post_init__(self) -> None:
        self.connections: dict[int, sqlite3.Connection] = {}  # by process: they cannot be inherited
        super().__post_init__()
        self.empty = (self.path / "jobs.db").read_bytes()
        self.now = datetime.now(UTC)
        self.run()
        self.ready = (self.path / "jobs.db").read_bytes()
        self.template = self.path.with_name("template")
        for root in ("results", "uploads", "temp"):
            shutil.copytree(self.path / root / TRASH, self.template / root / TRASH)

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Execute a statement, in a connection for each process and example."""
        connection = self.connections.get(os.getpid())
        if connection is None:
            connection = sqlite3.connect(self.path / "jobs.db", isolation_level=None)
            connection.execute("PRAGMA synchronous = OFF")  # only for what the test writes
            self.connections[os.getpid()] = connection
        return connection.execute(statement, values).fetchall()

    def config(self, **options: object) -> Config:
        options = {"performance__max_workers": 1, "performance__parallel_delete": False, **options}
        key = f"{self.path}{sorted(options.items())}"
        if key not in self.configs:
            self.configs[key] = super().config(**options)
        return self.configs[key]

    def begin(self, *, is_first_run: bool) -> None:
        """Empty the store: as no run has seen it, or as the first run left it."""
        for root in ("results", "uploads", "temp"):
            for entry in os.scandir(self.path / root):
                shutil.rmtree(entry) if entry.is_dir() else os.unlink(entry)
            if not is_first_run:
                shutil.copytree(self.template / root / TRASH, self.path / root / TRASH)
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()
        (self.path / "jobs.db-journal").unlink(missing_ok=True)
        (self.path / "jobs.db").write_bytes(self.empty if is_first_run else self.ready)
        self.now = datetime.now(UTC)
        self.events = []


# -- steps of a run at which something else happens --------------------------------------------------


class Stepping:
    """Does something just before the n-th step of a run; see ``run_and_die`` for what is a step."""

    actions: ClassVar[Mapping[int, Callable[[], object]]] = {}
    count = 0
    is_hooked = False

    @classmethod
    def step(cls) -> None:
        if cls.actions and threading.current_thread() is threading.main_thread():
            cls.count += 1
            if (action := cls.actions.get(cls.count)) is not None:
                actions, cls.actions = cls.actions, {}  # its own steps do not count
                action()
                cls.actions = actions

    @classmethod
    @contextmanager
    def at(cls, actions: Mapping[int, Callable[[], object]]) -> Iterator[None]:
        if not cls.is_hooked:
            sys.addaudithook(lambda event, _: cls.step() if event in CALLS else None)
            cls.is_hooked = True
        real_write = SqliteDatabase.write

        def write(database: SqliteDatabase, work: Callable[..., object]) -> object:
            cls.step()
            result = real_write(database, work)
            cls.step()
            return result

        cls.actions, cls.count = actions, 0
        try:
            with mock.patch.object(SqliteDatabase, "write", write):
                yield
        finally:
            cls.actions = {}


class History:
    """One example: a store, and the model of what must be so."""

    def __init__(
        self, store: TinyStore, zone: str, grace_hours: int, orphan_hours: int | None, is_first_run: bool
    ) -> None:
        self.store = store
        self.zone = ZoneInfo(zone)
        self.orphan_hours = orphan_hours
        self.grace_hours = grace_hours
        self.options: dict[str, Any] = {
            "database__timezone": zone,
            "trash__grace_hours": grace_hours,
            "orphans__delete_after_hours": orphan_hours,
        }
        self.state = State()
        self.note = store.path.with_name("state")
        store.begin(is_first_run=is_first_run)
        self.insert(
            JobSpec(LIVE_ROW, "running", 0, "naive", "shared-by-anchor.tif", frozenset({"dem"}), False)
        )

    # -- files -------------------------------------------------------------------------------------

    def put(self, path: str, *, marker: bool = False) -> None:
        """Create a file or folder unless something is in its place."""
        place = self.store.path / path
        root, _, name = path.partition("/")
        if place.exists() or not name or "/" in name or name.startswith("."):
            return
        self.state.files += 1
        content = str(self.state.files)
        if root != "uploads" and not name.endswith("_results.zip"):
            place.mkdir()
            if marker:
                (place / MARKER).touch()
            place /= "data.tif"
        place.write_text(content)
        self.state.bytes += place.stat().st_blocks * 512
        if any(row.cleaned_at and row.claims(path) for row in self.rows()) or Stepping.count:
            self.state.late.add(content)

    def contents(self) -> dict[str, str]:
        """Return where each content is: its path, without the file in a folder."""
        found = {}
        for root in ("results", "uploads", "temp"):
            for folder, _, names in os.walk(self.store.path / root):
                for name in names:
                    if name == MARKER or name.startswith("."):
                        continue
                    path = Path(folder, name)
                    parts = path.relative_to(self.store.path).parts
                    try:
                        found[path.read_text()] = "/".join(parts if parts[1] == TRASH else parts[:2])
                    except FileNotFoundError:  # just deleted
                        continue
        return found

    def in_place(self) -> dict[str, str]:
        """Return the content of each path that is in its place."""
        return {path: content for content, path in self.contents().items() if f"/{TRASH}/" not in path}

    def changed_at(self, path: str) -> datetime:
        place = self.store.path / path
        newest = max(os.lstat(each).st_ctime for each in (place, *place.rglob("*")))
        return datetime.fromtimestamp(newest, UTC)

    def has_marker(self, path: str) -> bool:
        return path.startswith("results/") and (self.store.path / path / MARKER).exists()

    # -- what must stay ----------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        rows = []
        # SQLite reads the name of a missing column, before the first run, as text if it has double quotes.
        for job_id, status, dem, facts, moment in self.store.sql(
            "SELECT id, status, dem_filename, parameters,"
            " nullif(\"data_cleaned_at\", 'data_cleaned_at') FROM jobs"
        ):
            at = None if moment is None else datetime.fromisoformat(str(moment)).replace(tzinfo=self.zone)
            due = json.loads(str(facts))["due"]
            rows.append(Row(str(job_id), str(status), None if dem is None else str(dem), due, at))
        return rows

    def has_ledger(self) -> bool:
        return bool(self.store.sql("SELECT 1 FROM sqlite_master WHERE name = 'cleanup_holds'"))

    def held(self) -> set[object]:
        return (
            {row[0] for row in self.store.sql("SELECT job_id FROM cleanup_holds")}
            if self.has_ledger()
            else set()
        )

    def is_due(self, row: Row) -> bool:
        is_old = row.due is not None and self.store.now.timestamp() >= row.due
        return is_old and row.status in RETENTION and not self.has_marker(f"results/{row.id}")

    def must_stay(self, path: str, rows: list[Row], held: set[object]) -> bool:
        claimants = [row for row in rows if row.claims(path)]
        if self.has_marker(path) or any(
            Row(str(job_id), "", None, None, None).claims(path) for job_id in held
        ):
            return True
        for row in claimants:
            is_finished = row.status in RETENTION and row.cleaned_at is not None
            if row.id in held or not (is_finished or self.is_due(row)):
                return True
        cleaned = [row.cleaned_at for row in claimants if row.cleaned_at is not None]
        if len(cleaned) < len(claimants):
            return False
        if not (self.store.path / path).exists():  # in the trash, whence nothing is owed to anybody
            return False
        if cleaned:
            return self.changed_at(path) >= max(cleaned)
        age = self.store.now - self.changed_at(path)
        return self.orphan_hours is None or age < timedelta(hours=self.orphan_hours)

    def owed(self) -> dict[str, str]:
        """Return what an interrupted run only staged, by path."""
        if not self.has_ledger():
            return {}
        where = {path: content for content, path in self.contents().items()}
        owed = {}
        for (artifacts,) in self.store.sql("SELECT artifacts FROM cleanup_intents WHERE state = 'open'"):
            for root, name, _, item in json.loads(str(artifacts)):
                for path, content in where.items():
                    if path.startswith(f"{root}/{TRASH}/{item}/"):
                        owed[f"{root}/{name}"] = content
        return owed

    def look(self) -> None:
        """Note what must be in its place at the end of the run, from now on."""
        rows, held, in_place = self.rows(), self.held(), self.in_place()
        known = {**self.owed(), **self.state.keep, **in_place}
        if Stepping.count:  # what is staged is owed only if it was already to stay
            known = {**self.state.keep, **in_place}
        self.state.keep = {
            path: content for path, content in known.items() if self.must_stay(path, rows, held)
        }
        for path in in_place:
            if sum(row.claims(path) for row in rows) > 1:
                self.state.shared.add(path)

    # -- the web application and people ------------------------------------------------------------

    def times(self, spec: JobSpec) -> Times:
        now, form = self.store.now, spec.form
        ended = (now - timedelta(hours=spec.age)).replace(microsecond=0)
        created = ended - timedelta(hours=1)
        local = ended.astimezone(self.zone).replace(tzinfo=None)
        completed: object = {
            "naive": local.isoformat(),
            "space": str(local),
            "micro": local.replace(microsecond=123456).isoformat(),
            "offset": ended.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(),
            "zulu": f"{ended:%Y-%m-%dT%H:%M:%S}Z",
            "none": None,
            "before": (local - timedelta(days=30)).isoformat(),
            "future": (local + timedelta(days=60)).isoformat(),
        }.get(form, form)
        due = None
        if form in GOOD_FORMS and spec.status in RETENTION:
            due = (ended + RETENTION[spec.status]).timestamp()
        if spec.status in {"running", "pending"}:
            completed = None
        if invalid(spec.id) or (spec.dem is not None and invalid(spec.dem)):
            due = None
        started = (created + timedelta(minutes=1)).astimezone(self.zone).replace(tzinfo=None).isoformat()
        return Times(f"{created:%Y-%m-%d %H:%M:%S}", started, completed, due)

    def insert(self, spec: JobSpec) -> None:
        if any(row.id == spec.id for row in self.rows()):
            return
        times = self.times(spec)
        self.state.inserted += 1
        for root in ("results", "temp"):
            if root in spec.files and not invalid(spec.id):
                self.put(f"{root}/{spec.id}", marker=spec.marker and root == "results")
        if "zip" in spec.files and not invalid(spec.id):
            self.put(f"results/{spec.id}_results.zip")
        if "extra" in spec.files and not invalid(spec.id):
            self.put(f"uploads/{spec.id}_x.tif")
        if "dem" in spec.files and spec.dem is not None:
            self.put(f"uploads/{spec.dem}")
        self.store.sql(
            "INSERT INTO jobs (id, workflow_type, status, created_at, started_at, completed_at, dem_filename,"
            " parameters) VALUES (?, 'sol', ?, ?, ?, ?, ?, ?)",
            *(spec.id, spec.status, times.created, times.started, times.completed, spec.dem),
            json.dumps({"due": times.due}),
        )

    def edit(self, edit: Edit) -> None:
        rows = [row for row in self.rows() if row.id != LIVE_ROW]
        if edit.kind == "insert":
            self.state.edited.add(edit.spec.id)
            self.insert(edit.spec)
        elif rows:
            row = rows[edit.number % len(rows)]
            self.state.edited.add(row.id)
            self.change(row, edit)
        if Stepping.count:
            self.look()
            self.note.write_bytes(pickle.dumps(self.state))

    def change(self, row: Row, edit: Edit) -> None:
        sql = self.store.sql
        if edit.kind == "rerun":
            facts = json.dumps({"due": None})
            changes = "status = 'running', completed_at = NULL, parameters = ?"
            sql(f"UPDATE jobs SET {changes} WHERE id = ?", facts, row.id)
            if not invalid(row.id):
                self.put(f"results/{row.id}")
        elif edit.kind == "times":
            spec = edit.spec._replace(id=row.id, dem=row.dem)
            times = self.times(spec)
            sql(
                "UPDATE jobs SET status = ?, created_at = ?, started_at = ?, completed_at = ?, parameters = ?"
                " WHERE id = ?",
                *(spec.status, times.created, times.started, times.completed),
                json.dumps({"due": times.due}),
                row.id,
            )
        elif edit.kind == "delete":
            sql("DELETE FROM jobs WHERE id = ?", row.id)
        elif edit.kind == "dem" and (row.dem is None or not invalid(row.dem)):  # the facts stay true
            dem = "shared.tif" if edit.number % 2 else "shared-by-anchor.tif"
            self.put(f"uploads/{dem}")
            sql("UPDATE jobs SET dem_filename = ? WHERE id = ?", dem, row.id)
        elif edit.kind == "put" and not invalid(row.id):
            self.put(
                [f"results/{row.id}", f"results/{row.id}_results.zip", f"temp/{row.id}"][edit.number % 3]
            )
        elif edit.kind == "marker" and (folder := self.store.path / f"results/{row.id}").is_dir():
            if not invalid(row.id):
                (folder / MARKER).touch()
        elif edit.kind == "hold" and self.has_ledger():
            sql(
                "INSERT OR REPLACE INTO cleanup_holds (job_id, reason, owner, created_at)"
                " VALUES (?, 'wanted', 'ann', '2026-01-01 00:00:00')",
                row.id,
            )
        elif edit.kind == "release" and self.has_ledger():
            sql("DELETE FROM cleanup_holds WHERE job_id = ?", row.id)

    # -- steps -------------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        if step.kind == "wait":
            self.store.now += WAIT
        elif step.kind == "edit":
            self.edit(step.edits[0][1])
        elif step.kind in {"run", "recovery"}:
            self.run(step)
        elif step.kind == "dry":
            before = self.store.snapshot()
            self.store.run(dry_run=True, **self.options)
            assert self.store.snapshot() == before
        elif step.kind == "restore":
            self.interruptible(lambda: self.take_out_of_the_trash(step.number), step)
        elif step.kind == "reset" and self.has_ledger():
            self.state.is_reset = True
            self.store.sql("UPDATE jobs SET data_cleaned_at = NULL, cleanup_summary = NULL")
            self.store.sql("DELETE FROM cleanup_log")
        self.check()

    def take_out_of_the_trash(self, number: int) -> None:
        rows = self.rows()
        request = RestoreRequest(
            self.store.config(**self.options),
            rows[number % len(rows)].id,
            (),
            False,
            "ann",
            NullHooks(),
            lambda: self.store.now,
        )
        self.state.restored += 1
        self.state.late |= self.contents().keys()  # what was restored is in place whatever the rows say
        self.note.write_bytes(pickle.dumps(self.state))
        try:
            restore(request)
        except TrashError:
            return

    def run(self, step: Step) -> None:
        trigger = Trigger.RECOVERY if step.kind == "recovery" else Trigger.MANUAL
        self.store.now += timedelta(seconds=1)  # the ids of runs in the same second can be equal
        self.state.keep = {}
        self.look()
        before = self.in_place()
        is_killed = self.interruptible(lambda: self.store.run(trigger=trigger, **self.options), step)
        contents = self.contents()
        after = {path: content for content, path in contents.items()}
        for path, content in self.state.keep.items():
            where = contents.get(content)
            assert where is not None, f"{path} was deleted"
            is_staged = f"/{TRASH}/" in where and f"{TRASH}/" in where and ".deleting/" not in where
            is_displaced = path in after and after[path] != content
            assert where == path or (is_staged and (is_killed or is_displaced)), f"{path} is at {where}"
        if step.kind == "recovery":
            assert {path: after.get(path) for path in before} == before

    def interruptible(self, action: Callable[[], object], step: Step) -> bool:
        """Do something with edits at some of its steps; return whether it was killed at one."""
        actions: dict[int, Callable[[], object]] = {at: partial(self.edit, edit) for at, edit in step.edits}
        if step.kill_at is None:
            with Stepping.at(actions):
                action()
            Stepping.count = 0
            return False
        self.note.write_bytes(pickle.dumps(self.state))
        failure = self.store.path.with_name("failure")
        child = os.fork()
        if child == 0:
            try:
                with Stepping.at({**actions, step.kill_at: lambda: os._exit(KILLED)}):
                    action()
            except BaseException:
                failure.write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in {0, KILLED}, failure.read_text()
        self.state = pickle.loads(self.note.read_bytes())
        return code == KILLED

    # -- what must be so ---------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing that is recorded as cleaned is in place."""
        rows = self.rows()
        for path, content in self.in_place().items():
            claimants = [row for row in rows if row.claims(path)]
            if len(claimants) > 1:
                self.state.shared.add(path)
            if path.startswith("uploads/") or path in self.state.shared or content in self.state.late:
                continue
            assert not any(row.cleaned_at for row in claimants), f"{path} is recorded as cleaned"

    def finish(self) -> None:
        """Run in peace, until the trash is empty too, and look for anything that is left."""
        for _ in range(2 if self.grace_hours else 1):
            self.store.now += timedelta(hours=48)
            self.run(Step("run"))
            self.check()
        sql, rows, held = self.store.sql, self.rows(), self.held()
        stuck = sql("SELECT job_id, artifacts, error FROM cleanup_intents WHERE state = 'open'")
        # The place of what is to be put back is taken: a person decides.
        assert all("Another entry" in str(error) for _, _, error in stuck), stuck
        intents = "".join(str(row[0]) for row in sql("SELECT artifacts FROM cleanup_intents"))
        for item in self.store.trash():
            name = item.removesuffix(".deleting")
            assert f'"{name}"' in intents or f'"{name}/' in intents, f"no intent knows {item}"
        for path in self.in_place():
            claimants = [row for row in rows if row.claims(path)]
            is_needed = not claimants or not all(row.cleaned_at for row in claimants)
            is_needed = is_needed or any(map(self.may_have_run_again, claimants))
            assert is_needed or self.must_stay(path, rows, held), f"no job needs {path}"
        for row in rows:
            if self.is_due(row) and row.id not in held and not row.cleaned_at:
                assert self.may_be_left(row, rows) or stuck, f"{row} was not cleaned"
        self.count(rows)

    def may_have_run_again(self, row: Row) -> bool:
        """An edit can let a job end after its cleaning, also by a time that is no good one."""
        if row.cleaned_at is None or row.id not in self.state.edited or row.status not in RETENTION:
            return False
        return row.due is None or row.due - RETENTION[row.status].total_seconds() > row.cleaned_at.timestamp()

    def may_be_left(self, row: Row, rows: list[Row]) -> bool:
        """Names that differ only in spelling keep each other's jobs; so does a marker in a shared entry."""
        names = {name for each in rows for name in (each.id, each.dem) if name is not None}
        names |= {path.partition("/")[2] for path in self.in_place()}
        spellings = Counter(unicodedata.normalize("NFC", name.casefold()) for name in names)
        own = [path for path in self.in_place() if row.claims(path)]
        return any(
            spellings[unicodedata.normalize("NFC", path.partition("/")[2].casefold())] > 1
            or self.has_marker(path)
            for path in own
        )

    def count(self, rows: list[Row]) -> None:
        """Nothing is counted or logged twice."""
        freed, jobs = self.store.sql(
            "SELECT sum(bytes_freed), sum(successful + failed) FROM cleanup_runs"
            " WHERE bytes_freed IS NOT NULL"
        )[0]
        assert int(str(freed)) <= self.state.bytes, "bytes are counted twice"
        sums = self.store.sql("SELECT name, sum(value) FROM cleanup_totals GROUP BY name")
        totals = {str(name): value for name, value in sums}
        assert totals.get("bytes_freed", 0) == freed, "the totals have other bytes than the runs"
        assert totals.get("jobs_cleaned", 0) == jobs, "the totals have other jobs than the runs"
        logged = self.store.sql(
            "SELECT job_id, count(*) FROM cleanup_log WHERE action IN ('cleaned', 'trashed') GROUP BY job_id"
        )
        if self.state.restored or self.state.is_reset:
            return
        twice = {str(job_id) for job_id, times in logged if int(str(times)) > 1 and job_id}
        assert twice <= self.state.edited, f"{twice - self.state.edited} are logged as cleaned twice"
        limit = sum(int(str(times)) for job_id, times in logged if job_id)
        assert int(str(jobs)) <= limit, "jobs are counted twice"
        if not self.state.edited:
            assert {job_id for job_id, _ in logged if job_id} == {row.id for row in rows if row.cleaned_at}


def invalid(name: str) -> bool:
    return name in {"", ".", ".."} or "/" in name


GOOD_FORMS = ["naive", "space", "micro", "offset", "zulu"]
ODD_FORMS = [
    *("none", "before", "future", "n/a", "", "1795010112345", "0001-01-01T00:00:00Z"),
    *("1970-01-01T00:00:00", "20250101", "2025-01-01"),
]
STATUSES = ["completed"] * 4 + ["failed"] * 3 + ["running", "pending", "strange", "Completed"]
EDITS = ["insert", "rerun", "times", "delete", "dem", "put", "marker", "hold", "release"]


@st.composite
def job_specs(draw: st.DrawFn) -> JobSpec:
    status = draw(st.sampled_from(STATUSES))
    return JobSpec(
        draw(st.sampled_from(IDS)),
        status,
        draw(st.sampled_from(AGES.get(status, [20, 200]))),
        draw(st.sampled_from(GOOD_FORMS * 4 + ODD_FORMS)),
        draw(st.sampled_from(DEMS)),
        draw(st.frozensets(st.sampled_from(["results", "zip", "temp", "dem", "extra"]))) | {"dem"},
        draw(st.integers(0, 7)) == 7,
    )


NUMBERS = st.integers(0, 11)
EDIT = st.builds(Edit, st.sampled_from(EDITS), NUMBERS, job_specs())
AT = st.integers(1, 70)
STEPS = st.one_of(
    st.builds(
        Step,
        st.sampled_from(["run", "run", "run", "recovery"]),
        st.just(0),
        st.lists(st.tuples(AT, EDIT), max_size=2).map(tuple),
        st.none() | AT | AT,
    ),
    st.builds(Step, st.just("edit"), st.just(0), st.tuples(st.tuples(st.just(0), EDIT))),
    st.builds(Step, st.just("restore"), NUMBERS, st.just(()), st.none() | st.integers(1, 12)),
    st.builds(Step, st.sampled_from(["wait", "wait", "reset", "dry"])),
)


@pytest.fixture(scope="module")
def tiny_store() -> Iterator[TinyStore]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield TinyStore(Path(folder) / "store")


def explore(store: TinyStore, examples: int, share: int) -> None:
    @seed(share)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=PHASES,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        zone=st.sampled_from(ZONES),
        grace_hours=st.sampled_from([0, 0, 24]),
        orphan_hours=st.sampled_from([None, 24]),
        is_first_run=st.integers(0, 7).map(lambda number: number == 7),
        jobs=st.lists(job_specs(), min_size=1, max_size=5),
        strays=st.lists(st.sampled_from(["results/lost", "uploads/lost.tif", "temp/a"]), max_size=1),
        steps=st.lists(STEPS, min_size=1, max_size=4),
    )
    def live_through(
        zone: str,
        grace_hours: int,
        orphan_hours: int | None,
        is_first_run: bool,
        jobs: list[JobSpec],
        strays: list[str],
        steps: list[Step],
    ) -> None:
        history = History(store, zone, grace_hours, orphan_hours, is_first_run)
        for spec in jobs:
            history.insert(spec)
        for path in strays:
            history.put(path)
        try:
            for step in steps:
                history.do(step)
            history.finish()
        except Exception as error:
            error.add_note(f"{zone=} {grace_hours=} {orphan_hours=} {is_first_run=}")
            for part in (*jobs, *strays, *steps):
                error.add_note(str(part))
            raise

    live_through()


def test_a_few_random_stores(tiny_store: TinyStore) -> None:
    explore(tiny_store, 8, share=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", range(1, SHARES + 1))
def test_random_stores(tiny_store: TinyStore, share: int) -> None:
    explore(tiny_store, -(-EXAMPLES // SHARES), share)
