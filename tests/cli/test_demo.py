"""``demo`` on the command line."""

from __future__ import annotations

import json
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from eemtcleanupd.demo import CANARY
from tests.conftest import RunCli


def test_demo_prints_the_job_counts_and_the_next_commands(tmp_path: Path, run_cli: RunCli) -> None:
    ran = run_cli("demo", tmp_path / "my store", "--jobs", "40")
    assert ran.returncode == 0, ran.stderr
    assert "40 jobs (1 archived, " in ran.stdout
    config = str(tmp_path / "my store" / "cleanup_config.yaml")
    assert Path(config).is_file()
    commands = [shlex.split(line) for line in ran.stdout.splitlines() if line.startswith("  ")]
    clean = ["eemtcleanupd", "clean", "--config", config]
    assert commands == [[*clean, "--dry-run"], clean]


def test_json_has_the_job_counts_and_the_next_commands(tmp_path: Path, run_cli: RunCli) -> None:
    answer = json.loads(run_cli("demo", tmp_path / "demo", "--jobs", "40", "--seed", "3", "--json").stdout)
    assert sum(answer["jobs"].values()) == 40
    assert answer["files"] > 200
    assert answer["size_bytes"] > 1024 * 1024
    assert len(answer["next"]) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["."], "empty"),
        (["new", "--jobs", "39"], "39 is not in the range"),
        ([], "Missing argument 'DIR'"),
    ],
)
def test_wrong_usage_exits_with_2_and_creates_nothing(
    tmp_path: Path, run_cli: RunCli, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = run_cli("demo", *arguments)
    assert (ran.returncode, complaint in ran.stderr) == (2, True), ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_cleaning_a_demo_deletes_only_data_that_no_kept_job_needs(tmp_path: Path, run_cli: RunCli) -> None:
    store = tmp_path / "demo"
    run_cli("demo", store)
    before = {path for path in store.rglob("*") if path.is_file()}
    ran = run_cli("clean", "--config", store / "cleanup_config.yaml")
    assert ran.returncode == 0, ran.stdout + ran.stderr

    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        jobs = connection.execute("SELECT id, dem_filename, data_cleaned_at IS NOT NULL FROM jobs").fetchall()
    kept = {job_id for job_id, _, cleaned in jobs if not cleaned}
    needed = {upload for _, upload, cleaned in jobs if not cleaned}
    assert len(jobs) == 400
    assert 50 < len(kept) < 350
    deleted = {path.relative_to(store) for path in before if not path.is_file()}
    assert {path.parts[0] for path in deleted} == {"results", "uploads", "temp"}
    assert not needed & {path.name for path in deleted}
    assert not kept & {part.removesuffix("_results.zip") for path in deleted for part in path.parts}
    assert (store / CANARY).read_text().startswith("This file is outside")
