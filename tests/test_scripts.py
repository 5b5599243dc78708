"""The scripts that existing crontabs call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import Aged

SCRIPT = Path(__file__).parents[1] / "scripts/cleanup_jobs.py"


def test_cleanup_jobs_takes_the_documents_options(sample_store: Path, aged: Aged) -> None:
    store = aged(sample_store, 10)
    arguments = [
        "--db-path", f"{store}/jobs.db", "--uploads-dir", f"{store}/uploads", "--results-dir",
        f"{store}/results", "--success-retention", "168", "--failed-retention", "12", "--verbose",
        "--parallel", "--workers", "4", "--batch-size", "50", "--skip-large", "--size-threshold", "10G",
    ]  # fmt: skip
    for more, last in (
        (["--dry-run"], "[DRY RUN] Summary: Would clean 6 jobs, freeing ~144 KB"),
        ([], "[INFO] Cleanup completed successfully"),
    ):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments, *more],
            cwd=store,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == last


def test_without_the_package_it_says_what_to_do(tmp_path: Path) -> None:
    lonely = tmp_path / "cleanup_jobs.py"
    lonely.write_bytes(SCRIPT.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(lonely)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "install the package for this interpreter" in done.stderr
    assert "Traceback" not in done.stderr
