"""The scripts that crontabs call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Aged, data_of, in_kb

SCRIPT = Path(__file__).parents[1] / "scripts/cleanup_jobs.py"


def test_cleanup_jobs_accepts_the_documented_options(sample_store: Path, aged: Aged) -> None:
    store = aged(sample_store, 10)
    arguments = [
        "--db-path", f"{store}/jobs.db", "--uploads-dir", f"{store}/uploads", "--results-dir",
        f"{store}/results", "--success-retention", "168", "--failed-retention", "12", "--verbose",
        "--parallel", "--workers", "4", "--batch-size", "50", "--skip-large", "--size-threshold", "10G",
    ]  # fmt: skip
    before, last = data_of(store), []
    for more in (["--dry-run"], []):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments, *more],
            cwd=store,
            capture_output=True,
            text=True,
            check=True,
        )
        last.append(done.stdout.splitlines()[-1])
    assert last == [
        f"[DRY RUN] Summary: Would clean 6 jobs, freeing ~{in_kb(before - data_of(store))}",
        "[INFO] Cleanup completed successfully",
    ]


def test_without_the_package_the_script_exits_with_advice(tmp_path: Path) -> None:
    script = tmp_path / "cleanup_jobs.py"
    script.write_bytes(SCRIPT.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"{sys.executable} -m pip install ." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["in the PATH", "beside a linked script"])
def test_without_the_package_the_scripts_run_the_installed_command(tmp_path: Path, place: str) -> None:
    command = tmp_path / "bin/eemtcleanupd"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    installed = tmp_path if place == "in the PATH" else command.parent
    scripts = tmp_path / "scripts"
    scripts.symlink_to(installed)
    for name, verb in (("cleanup_jobs.py", "clean"), ("rerun_job.py", "rerun")):
        (installed / name).write_bytes(SCRIPT.with_name(name).read_bytes())
        done = subprocess.run(
            [sys.executable, "-I", "-S", scripts / name, "--job-id", "a b"],
            env={"PATH": str(command.parent) if place == "in the PATH" else "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{verb} --job-id a b\n"
