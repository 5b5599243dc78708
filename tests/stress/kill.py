"""One run or restore under strace, killed or failed at the n-th call of each kind, for every n."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eemtcleanupd.notifiers.audit_verify import verify
from tests.cleanup.conftest import JobStore
from tests.conftest import settle

CALLS = (
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "fsync",
    "fdatasync",
    "write",
    "pwrite64",
)
ERRORS = ("EIO", "ENOSPC", "EACCES", "EBUSY", "EMFILE")
VARIANTS: Mapping[str, str] = {
    "plain": "",
    "grace": "trash: {grace_hours: 24}\n",
    "backup": "backup: {enabled: true}\n",
    "restore": "trash: {grace_hours: 24}\n",
    "archives": "backup: {enabled: true}\n",
}
_RESTORES = {"restore": ("trash", "restore", "done"), "archives": ("backup", "restore", "done")}
_HEAD = "performance: {max_workers: 1}\ndatabase: {timezone: UTC}\n"
_DUE = {"done", "broken"}
_KILLED = 137
# A run that fails in words ends with one of these; a traceback would be 1 as well, so stderr is looked at.
_CODES = {0, 1, 3}


@dataclass
class Tally:
    """What was tried and what came of it."""

    points: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def make_store(folder: Path, variant: str) -> JobStore:
    """Make a store whose run takes every kind of step."""
    store = JobStore(folder / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text(_HEAD + VARIANTS[variant])
    (folder / "canary").mkdir()
    (folder / "canary" / "alive").write_text("tweet")
    store.job("done", dem="single.tif", files=1)
    (store.results("done") / "link").symlink_to(folder / "canary")
    store.job("broken", "failed", days=2, dem="needed.tif", files=1)
    (store.results("broken") / "global/run.log").write_text("why")
    store.job("live", "running", days=None, dem="needed.tif")
    store.job("young", days=1)
    (store.path / "results/done_results.zip").write_bytes(b"zip" * 1000)
    for name in ("single.tif", "needed.tif"):
        store.upload(name)
    settle(store.path / "results", store.now - timedelta(days=1))
    if variant in _RESTORES:
        assert execute(store, "clean").returncode == 0
    if variant == "archives":  # it ran again: of one artifact the second archive has a newer one
        store.sql("DELETE FROM jobs WHERE id = 'done'")
        store.job("done", dem="single.tif", files=1)
        (store.results("done") / "global/day_1.tif").write_bytes(b"newer")
        settle(store.path / "results", store.now - timedelta(days=1))
        assert execute(store, "clean").returncode == 0
    return store


def environment(store: JobStore) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(store.path.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def execute(store: JobStore, *command: str, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, sys.executable, "-m", "eemtcleanupd", *command],
        cwd=store.path,
        env=environment(store),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def faults_of(store: JobStore, *, ended: bool) -> Iterator[str]:
    """Yield what must not be; with ``ended`` a whole run has come to its end."""
    folder = store.path.parent
    if (folder / "canary" / "alive").read_text() != "tweet":
        yield "the canary was touched"
    for job in ("live", "young"):
        if not (store.results(job) / "global/day_1.tif").exists():
            yield f"{job} lost its data"
    if len(store.sql("SELECT * FROM jobs")) != 4:
        yield "rows were lost"
    columns = [row[1] for row in store.sql("PRAGMA table_info(jobs)")]
    cleaned = store.cleaned() if "data_cleaned_at" in columns else set()
    for job in map(str, cleaned):
        if store.results(job).exists() or (store.path / f"results/{job}_results.zip").exists():
            yield f"{job} is recorded as cleaned and in its place"
    if cleaned - _DUE:
        yield f"{cleaned - _DUE} was recorded as cleaned"
    if ended:
        yield from _faults_at_the_end(store, cleaned)


def _faults_at_the_end(store: JobStore, cleaned: set[object]) -> Iterator[str]:
    if cleaned != _DUE:
        yield f"only {cleaned} were cleaned in the end"
    if not (store.path / "uploads/needed.tif").exists():
        yield "an upload that is needed is gone"
    if (store.path / "uploads/single.tif").exists():
        yield "an upload that nobody needs is there"
    if not (store.path / "logs/jobs/broken/global/run.log").exists():
        yield "a log that is to be kept is gone"
    freed = sum(int(str(row[0])) for row in store.sql("SELECT bytes_freed FROM cleanup_runs"))
    if freed > 100_000:
        yield f"{freed} bytes were counted"
    if store.sql("SELECT * FROM cleanup_intents WHERE state = 'open'"):
        yield "an intent is left open"
    for finding in verify(store.path / "logs" / "cleanup_audit.jsonl").errors:
        yield f"the audit log: {finding}"


def faults_of_restore(store: JobStore, variant: str) -> Iterator[str]:
    """Yield what must not be after a restore and two runs: the first ends what was interrupted."""
    for number in (1, 2):
        done = execute(store, "clean")
        if done.returncode != 0:
            yield f"run {number} ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        elif number == 1 and store.cleaned() == _DUE:  # it was interrupted before it began
            done = execute(store, *_RESTORES[variant])
            if done.returncode != 0:
                yield f"the restore ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    yield from _faults_after_a_restore(store, variant)


def _faults_after_a_restore(store: JobStore, variant: str) -> Iterator[str]:
    newest = store.results("done") / "global/day_1.tif"
    places = ["results/done/global/day_0.tif", "results/done_results.zip", "uploads/single.tif"]
    places += ["results/live/global/day_1.tif", "results/young/global/day_1.tif", "../canary/alive"]
    places += ["results/done/global/day_1.tif" if variant == "archives" else "results/done/link"]
    for path in places:
        if not os.path.lexists(store.path / path):
            yield f"{path} is not in its place"
    if variant == "archives" and newest.exists() and newest.read_bytes() != b"newer":
        yield "an older copy of the results was restored"
    if store.cleaned() != _DUE - {"done"}:
        yield f"{store.cleaned()} are recorded as cleaned"
    if store.sql("SELECT * FROM cleanup_intents WHERE state = 'open' AND job_id = 'done'"):
        yield "an intent is left open"
    if any(store.path.glob("*/.eemtcleanupd-trash/backup-*")):
        yield "what was unpacked is left"
    for finding in verify(store.path / "logs" / "cleanup_audit.jsonl").errors:
        yield f"the audit log: {finding}"


def attack(variant: str, call: str, how: str, at: int) -> tuple[str, list[str]]:
    """Run once with one injected fault, then once without; returns how it ended and what was wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, variant)
        what = "signal=SIGKILL" if how == "SIGKILL" else f"error={how}"
        strace = ["strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", f"trace={call}"]
        strace += ["-e", f"inject={call}:{what}:when={at}"]
        done = execute(store, *_RESTORES.get(variant, ("clean",)), under=strace)
        trace = (folder / "trace").read_text(errors="replace")
        # A run ends helpers of its own with SIGKILL too, but not in the middle of a call.
        is_killed = done.returncode == -signal.SIGKILL or "= ?" in trace
        if "(INJECTED" not in trace and not is_killed:
            return "over", []
        faults = [] if variant in _RESTORES else list(faults_of(store, ended=False))
        if how != "SIGKILL":
            if done.returncode not in _CODES:
                faults.append(f"it ended with {done.returncode}")
            if "Traceback" in done.stderr and call != "write":
                faults.append("a traceback: " + done.stderr.strip().rpartition("\n")[2])
        if variant in _RESTORES:
            faults += faults_of_restore(store, variant)
        else:
            again = execute(store, "clean")
            if again.returncode != 0:
                faults.append(f"the next run ended with {again.returncode}: {again.stderr.strip()[-300:]}")
            faults += faults_of(store, ended=True)
        ending = "killed" if how == "SIGKILL" else f"exit {done.returncode}"
        return ending, [f"{variant}, {how} at {call} {at}: {fault}" for fault in faults]


def attack_all(variant: str, call: str, how: str) -> Tally:
    """Attack at every n until the run no longer gets so far."""
    tally = Tally()
    at = 0
    while True:
        at += 1
        ending, faults = attack(variant, call, how, at)
        if ending == "over":
            return tally
        tally.points[how] += 1
        tally.endings[ending] += 1
        tally.faults += faults


def run(variants: list[str], hows: list[str]) -> Tally:
    """Attack in every way, two at a time."""
    if shutil.which("strace") is None:
        sys.exit("The stress tests need strace (Debian, Ubuntu: apt install strace)")
    total = Tally()
    ways = [(variant, call, how) for variant in variants for how in hows for call in CALLS]
    with ThreadPoolExecutor(2) as pool:
        for way, tally in zip(ways, pool.map(lambda way: attack_all(*way), ways), strict=True):
            total.points.update(tally.points)
            total.endings.update(tally.endings)
            total.faults += tally.faults
            print(
                f"  {', '.join(way)}: {sum(tally.points.values())} points",
                *tally.faults,
                sep="\n    ",
                flush=True,
            )
    return total
