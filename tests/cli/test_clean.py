"""``clean`` as a process on a copy of a real job store."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest

import eemtcleanupd
from tests.conftest import Aged, RunCli, data_of, disk_bytes, in_kb, settle

A2E = "a2e927ff-30e3-4752-92b5-69b5b10d59df_VCaldera_0939_DEM_025m.tif"
EB6 = "eb6a0141-e36c-44fb-931a-a13fc0894f84_topo.tif"
CF7 = "cf7c2e40-6936-46dc-b667-d28187902176_mcn_10m.tif"


def rows(store: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        return connection.execute(statement).fetchall()


def options(store: Path) -> list[str]:
    return [
        "--db-path", f"{store}/jobs.db", "--uploads-dir", f"{store}/uploads",
        "--results-dir", f"{store}/results", "--temp-dir", f"{store}/temp",
    ]  # fmt: skip


def test_all_expired_jobs_of_the_sample_are_cleaned_except_uploads_of_live_jobs(
    sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    store = aged(sample_store, 10)
    first = run_cli("clean", *options(store))
    assert first.returncode == 0, first.stderr
    assert rows(store, "SELECT status, count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL GROUP BY 1") == [
        ("completed", 3),
        ("failed", 3),
    ]
    assert sorted(name for name in os.listdir(store / "uploads") if not name.startswith(".")) == [A2E, EB6]
    assert os.listdir(store / "results") == [".eemtcleanupd-trash"]
    assert rows(store, "SELECT count(*) FROM jobs") == [(8,)]
    before = rows(store, "SELECT * FROM jobs")
    second = run_cli("clean", *options(store), "--json")
    answer = json.loads(second.stdout)
    assert (second.returncode, answer["cleaned_jobs"]) == (0, {"successful": 0, "failed": 0})
    assert rows(store, "SELECT * FROM jobs") == before


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati"])
@pytest.mark.parametrize(("hours", "cleaned"), [(11, 0), (13, 3)])
def test_the_retention_of_failed_jobs_is_exact_in_every_time_zone(
    sample_store: Path, aged: Aged, run_cli: RunCli, zone: str, hours: int, cleaned: int
) -> None:
    from zoneinfo import ZoneInfo

    store = aged(sample_store, hours / 24, ZoneInfo(zone))
    done = run_cli("clean", *options(store), "--json", env={"TZ": zone})
    assert json.loads(done.stdout)["cleaned_jobs"] == {"successful": 0, "failed": cleaned}


def test_a_dry_run_prints_the_documented_lines(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    lines = run_cli("clean", *options(store), "--dry-run").stdout.splitlines()
    job = "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326"
    upload, results, before = (
        disk_bytes(store / "uploads" / CF7),
        disk_bytes(store / "results" / job),
        data_of(store),
    )
    run_cli("clean", *options(store))
    assert f"[DRY RUN] Would clean job {job} (status: completed, age: 10.0 days)" in lines
    assert f"[DRY RUN] Would delete: uploads/{CF7} ({in_kb(upload)})" in lines
    assert f"[DRY RUN] Would delete: results/{job}/ ({in_kb(results)})" in lines
    assert lines[-1] == f"[DRY RUN] Summary: Would clean 6 jobs, freeing ~{in_kb(before - data_of(store))}"


def test_verbose_prints_the_documented_lines_and_the_log_has_its_format(
    sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    store = aged(sample_store, 10)
    job = "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326"
    results, archive = (disk_bytes(store / "results" / name) for name in (job, f"{job}_results.zip"))
    failed, before = disk_bytes(store / "uploads" / CF7), data_of(store)
    lines = run_cli("clean", "--verbose", cwd=store).stdout.splitlines()
    freed = before - data_of(store)
    assert lines[0] == "[INFO] Starting job cleanup process..."
    index = lines.index(f"[INFO] Checking job {job} (completed, 10 days old)")
    assert lines[index + 1 : index + 4] == [
        f"[INFO] Deleting results/{job}/ ({in_kb(results)})",
        f"[INFO] Deleting results/{job}_results.zip ({in_kb(archive)})",
        "[INFO] Updated database: marked job as cleaned",
    ]
    assert lines[-3:] == [
        f"[INFO] Cleaned 3 successful jobs (freed {in_kb(freed - failed)})",
        f"[INFO] Cleaned 3 failed jobs (freed {in_kb(failed)})",
        "[INFO] Cleanup completed successfully",
    ]
    log = (store / "logs/cleanup.log").read_text().splitlines()
    assert all(line[4] == "-" and line[19:].startswith((" INFO: ", " WARNING: ")) for line in log)
    texts = [line[20:] for line in log]
    assert texts[0] == "INFO: Starting job cleanup process"
    assert "INFO: Found 6 jobs to check" in texts
    assert f"INFO: Cleaning job {job} (completed, 10.0 days old)" in texts
    assert f"INFO: Deleted results/{job}/ ({in_kb(results)})" in texts
    assert texts[-2:] == [
        f"INFO: Cleanup summary: 3 successful, 3 failed, {in_kb(freed)} freed",
        "INFO: Cleanup completed successfully",
    ]


def test_debug_prints_sql_file_operations_durations_and_memory(
    sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    done = run_cli("clean", *options(aged(sample_store, 10)), "--verbose", "--debug")
    for text in ("[DEBUG] SQL ", " ms: SELECT", "renameat results/", "Emptied trash item", "Peak memory: "):
        assert text in done.stderr


def test_debug_prints_the_same_in_a_dry_run(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    done = run_cli("clean", *options(store), "--dry-run", "--verbose", "--debug")
    for text in ("[DEBUG] SQL ", " ms: SELECT", "Peak memory: "):
        assert text in done.stderr
    assert not (store / "logs").exists()
    preview = run_cli("clean", *options(store), "--dry-run", "--json", "--debug")
    assert "Peak memory: " in preview.stderr
    assert json.loads(preview.stdout)["dry_run"] is True


def test_json_has_the_documented_keys_and_more(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    job = "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326"
    of_job, before = sum(map(disk_bytes, (store / "results").glob(f"{job}*"))), data_of(store)
    planned = json.loads(run_cli("clean", *options(store), "--json", "--dry-run").stdout)
    answer = json.loads(run_cli("clean", *options(store), "--json").stdout)
    freed = before - data_of(store)
    for document in (planned, answer):
        assert document["success"] is True
        assert document["cleaned_jobs"] == {"successful": 3, "failed": 3}
        assert document["space_freed"] == {"bytes": freed, "human_readable": f"{freed / 1024:.1f} KB"}
        assert (document["skipped"], document["errors"]) == ([], [])
    assert (planned["dry_run"], answer["dry_run"]) == (True, False)
    by_id = {detail["job_id"]: detail for detail in answer["details"]}
    assert len(by_id) == 6
    detail = by_id[job]
    assert (detail["status"], detail["age_days"]) == ("completed", 10.0)
    assert detail["space_freed"] == f"{of_job / 1024:.1f} KB"
    assert {d["job_id"] for d in planned["details"]} == set(by_id)


def test_a_second_run_exits_with_4_and_names_the_first(
    sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    from datetime import UTC, datetime

    from eemtcleanupd.store.lock import run_lock
    from eemtcleanupd.store.sqlite import SqliteDatabase

    store = aged(sample_store, 10)
    with run_lock(
        SqliteDatabase(store / "jobs.db", busy_timeout_seconds=1), "20260101T000000-abcd", datetime.now(UTC)
    ):
        second = run_cli("clean", *options(store))
    assert second.returncode == 4
    assert f"run 20260101T000000-abcd, process {os.getpid()} on " in second.stderr
    assert len(second.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "noun"),
    [
        (["--success-retention", "-1"], 2, "--success-retention: retention.successful_jobs.hours"),
        (["--success-retention", "week"], 2, "'week'"),
        (["--workers", "0"], 2, "--workers: performance.max_workers"),
        (["--size-threshold", "10G"], 2, "--skip-large"),
        (["--skip-large", "--size-threshold", "big"], 2, "'big'"),
        (["--config", "missing.yaml"], 2, "missing.yaml"),
        (["--db-path", "missing.db"], 3, "missing.db"),
        (["--db-path", "README.md"], 3, "README.md"),
        (["--db-path", "results"], 3, "results"),
        (["--db-path", "postgresql://anna:secret@127.0.0.1:1/jobs"], 3, "127.0.0.1"),
        (["--db-path", "mysql://anna:secret@host/jobs"], 3, "mysql"),
        (["--results-dir", "missing"], 3, "paths.results"),
        (["--results-dir", "jobs.db"], 3, "jobs.db"),
        (["--results-dir", "."], 3, "jobs.db"),
        (["--results-dir", "/"], 3, "paths.results"),
        (["--results-dir", "uploads"], 3, "paths.uploads"),
        (["--no-such-option"], 2, "--no-such-option"),
    ],
)
def test_invalid_input_is_an_error_with_its_exit_code(
    sample_store: Path, run_cli: RunCli, arguments: list[str], code: int, noun: str
) -> None:
    before = (sample_store / "jobs.db").read_bytes()
    done = run_cli("clean", *arguments, cwd=sample_store)
    assert (done.returncode, done.stdout) == (code, "")
    assert noun in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert (sample_store / "jobs.db").read_bytes() == before


def test_with_json_an_error_is_json_too(sample_store: Path, run_cli: RunCli) -> None:
    done = run_cli("clean", "--json", "--db-path", "missing.db", cwd=sample_store)
    answer = json.loads(done.stdout)
    assert (answer["success"], answer["exit_code"], done.returncode) == (False, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_gracefully_and_the_next_run_continues(
    tmp_path: Path, run_cli: RunCli, number: signal.Signals
) -> None:
    assert run_cli("demo", "store", "--jobs", "300").returncode == 0
    store = tmp_path / "store"
    config = store / "cleanup_config.yaml"
    fast = config.read_text()
    config.write_text(fast.replace("\nperformance:\n", "\nperformance:\n  max_deletes_per_second: 100\n"))
    assert config.read_text() != fast
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "clean", "--workers", "1"],
        cwd=store,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    deadline = time.monotonic() + 30
    while not _has_cleaned_one(store) and time.monotonic() < deadline:
        assert process.poll() is None
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert output.splitlines()[-1].startswith("[WARNING] ")
    assert rows(store, "SELECT outcome FROM cleanup_runs") == [("interrupted",)]
    config.write_text(fast)
    again = run_cli("clean", "--json", cwd=store)
    assert again.returncode == 0
    assert rows(store, "SELECT count(*) FROM cleanup_intents") == [(0,)]
    assert (store / "canary/keep-me.txt").exists()


def _has_cleaned_one(store: Path) -> bool:
    try:
        return bool(rows(store, "SELECT 1 FROM cleanup_log LIMIT 1"))
    except sqlite3.OperationalError:
        return False


@pytest.mark.slow
def test_a_busy_web_interface_never_waits_too_long_for_the_database(tmp_path: Path, run_cli: RunCli) -> None:
    """A writer commits every 10 ms with a 5 s timeout while 2,000 jobs are cleaned."""
    store = tmp_path / "store"
    for name in ("uploads", "results"):
        (store / name).mkdir(parents=True)
    with closing(sqlite3.connect(store / "jobs.db")) as connection, connection:
        connection.execute(
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, workflow_type TEXT, status TEXT, completed_at TIMESTAMP,"
            " progress INTEGER, dem_filename TEXT)"
        )
        connection.executemany(
            "INSERT INTO jobs VALUES (?, 'sol', 'completed', '2026-01-01T00:00:00', 0, NULL)",
            [(f"job-{number}",) for number in range(2000)],
        )
        connection.execute("INSERT INTO jobs VALUES ('live', 'sol', 'running', NULL, 0, NULL)")
    for number in range(2000):
        (store / f"results/job-{number}").mkdir()
    settle(store / "results", datetime.now(UTC) - timedelta(days=1))
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(store / "jobs.db")],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        done = run_cli("clean", "--json", cwd=store)
        counts, _ = writer.communicate("stop\n", timeout=30)
    finally:
        writer.kill()
    assert json.loads(done.stdout)["cleaned_jobs"]["successful"] == 2000
    commits, locked = map(int, counts.split())
    assert locked == 0
    assert rows(store, "SELECT progress FROM jobs WHERE id = 'live'") == [(commits,)]
    assert commits > 10


# Writes like the web interface: a new connection for each statement, with the default timeout of 5 s.
_WRITER = """
import select, sqlite3, sys
commits = locked = 0
print("writing", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    connection = sqlite3.connect(sys.argv[1])
    try:
        connection.execute("UPDATE jobs SET progress = progress + 1 WHERE id = 'live'")
        connection.commit()
        commits += 1
    except sqlite3.OperationalError:
        locked += 1
    connection.close()
print(commits, locked)
"""


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from eemtcleanupd.cli.main import cli; cli.main(['--help'], standalone_mode=False);"
        "print([n for n in ('sqlalchemy', 'pydantic', 'rich', 'yaml', 'humanize') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_run_imports_only_what_it_needs(sample_store: Path) -> None:
    """An ``atexit`` function checks the modules, so this also tests that the quick exit calls it."""
    code = (
        "import atexit, sys; from eemtcleanupd.cli.main import main; sys.argv = ['eemtcleanupd', 'clean'];"
        "atexit.register(lambda: print([n for n in ('tarfile', 'eemtcleanupd.deletion.dask_executor',"
        " 'requests', 'jinja2', 'rich', 'watchdog', 'sqlalchemy.orm', 'fastapi') if n in sys.modules],"
        " sys.modules['eemtcleanupd.config.schema'].TrashConfig.__pydantic_complete__, file=sys.stderr));"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sample_store, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[] False\n"
    assert done.stdout.endswith("[INFO] Cleanup completed successfully\n")


def test_a_helper_process_imports_only_what_it_needs() -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]); import eemtcleanupd.deletion.helper_process;"
        "print([n for n in ('pathlib', 'zoneinfo', 'logging', 'subprocess') if n in sys.modules])"
    )
    folder = str(Path(eemtcleanupd.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_lines_are_coloured_on_a_terminal_unless_no_color_is_set(sample_store: Path, run_cli: RunCli) -> None:
    """Runs on a pseudo-terminal, together with the progress bar."""
    plain = _on_terminal(sample_store, {"NO_COLOR": "1", "TERM": "xterm"})
    coloured = _on_terminal(sample_store, {"TERM": "xterm"})
    assert "\x1b[36m[DRY RUN]" in coloured
    assert "\x1b[36m" not in plain
    assert "[DRY RUN]" in plain


@pytest.mark.slow
def test_the_database_in_use_is_shown_on_a_terminal_and_not_on_stdout(
    sample_store: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    store = sample_store.rename(tmp_path / ("wider-than-the-terminal-" * 5))
    with (tmp_path / "stdout").open("wb") as stdout:
        shown = _on_terminal(store, {"TERM": "xterm"}, stdout)
    plain = run_cli("clean", "--dry-run", cwd=store)
    assert f"{store}/jobs.db" in shown
    assert plain.stderr == ""
    assert (tmp_path / "stdout").read_text() == plain.stdout
    assert "jobs.db" not in plain.stdout
    assert f"{store}/jobs.db" in run_cli("clean", "--dry-run", "--verbose", cwd=store).stdout


def _on_terminal(store: Path, environment: dict[str, str], stdout: IO[bytes] | None = None) -> str:
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "clean", "--dry-run"],
        cwd=store,
        stdout=stdout or slave,
        stderr=slave,
        env={"PATH": os.environ["PATH"], **environment},
    )
    os.close(slave)
    output = b""
    while True:
        try:
            read = os.read(master, 65536)
        except OSError:  # EIO: the other side has closed
            break
        if not read:
            break
        output += read
    os.close(master)
    assert process.wait(30) == 0
    return output.decode()


@pytest.mark.slow
@pytest.mark.root
def test_jobs_with_mounts_are_kept_and_unusual_entries_are_deleted(tmp_path: Path) -> None:
    """A bind mount and another filesystem inside results, in a separate mount namespace."""
    store, canary = tmp_path / "store", tmp_path / "canary"
    canary.mkdir()
    (canary / "keep").write_text("keep")
    (store / "uploads").mkdir(parents=True)
    with closing(sqlite3.connect(store.parent / "store/jobs.db")) as connection, connection:
        connection.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
        for job in ("bound", "other fs", "odd", "deep"):
            connection.execute("INSERT INTO jobs VALUES (?, 'completed', '2026-01-01T00:00:00')", (job,))
            (store / "results" / job / "sub").mkdir(parents=True)
    os.mkfifo(store / "results/odd/fifo")
    os.mknod(store / "results/odd/null", 0o20666, os.makedev(1, 3))
    fd = os.open(store / "results/deep", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("level", dir_fd=fd)
        below = os.open("level", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    script = (
        f'cd "{store}" && mount --bind "{canary}" results/bound/sub'
        ' && mount -t tmpfs none "results/other fs/sub" && touch "results/other fs/sub/inside"'
        f" && export EEMT_CLEANUP_MIN_IDLE_MINUTES=0"
        f' && "{sys.executable}" -m eemtcleanupd clean --json && test -e "results/other fs/sub/inside"'
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert sorted(detail["job_id"] for detail in answer["details"]) == ["deep", "odd"]
    assert {skip["job_id"]: skip["reason"] for skip in answer["skipped"]} == {
        "bound": f"a filesystem is mounted at {store}/results/bound/sub",
        "other fs": f"a filesystem is mounted at {store}/results/other fs/sub",
    }
    assert (canary / "keep").exists()
    assert sorted(os.listdir(store / "results")) == [".eemtcleanupd-trash", "bound", "other fs"]


def test_a_log_that_cannot_be_written_is_one_warning_and_does_not_stop_the_run(
    sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    store = aged(sample_store, 10)
    (store / "cleanup_config.yaml").write_text("logging: {file: /dev/full}\n")
    done = run_cli("clean", *options(store), cwd=store)
    assert done.returncode == 0
    assert done.stderr == (
        "[WARNING] The log /dev/full cannot be written (No space left on device); continuing without it\n"
    )
    assert rows(store, "SELECT outcome, successful FROM cleanup_runs") == [("success", 3)]


def test_a_quiet_run_prints_only_warnings_and_errors(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    with closing(sqlite3.connect(store / "jobs.db")) as connection, connection:
        connection.execute("UPDATE jobs SET status = 'archived' WHERE id = (SELECT min(id) FROM jobs)")
    for options in (["-n"], []):
        quiet = run_cli("clean", *options, "--quiet", cwd=store)
        assert (quiet.returncode, quiet.stderr) == (0, "")
        assert [line.split("]")[0] for line in quiet.stdout.splitlines()] == ["[WARNING"]
    assert run_cli("-q", "clean", cwd=store).stdout == quiet.stdout
    assert json.loads(run_cli("clean", "-q", "--json", cwd=store).stdout)["success"]
    assert run_cli("clean", "-q", "-v", cwd=store).returncode == 2


def test_retention_takes_durations(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    runs = [
        json.loads(run_cli("clean", "-n", "--json", "--success-retention", text, cwd=store).stdout)
        for text in ("216", "9d", "2w")
    ]
    assert runs[0]["cleaned_jobs"] == runs[1]["cleaned_jobs"]
    assert runs[2]["cleaned_jobs"]["successful"] == 0 < runs[1]["cleaned_jobs"]["successful"]
