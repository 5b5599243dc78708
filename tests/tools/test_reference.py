"""Generated files are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools import architecture

ROOT = Path(__file__).parents[2]


def test_no_generated_file_is_out_of_date() -> None:
    command = [sys.executable, "-m", "tools.reference", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_in_the_module_tables_with_its_purpose() -> None:
    rows = [line for line in architecture.modules().splitlines() if line.startswith("| `")]
    modules = [path for path in (ROOT / "eemtcleanupd").rglob("*.py") if not path.name.startswith("__")]
    assert len(rows) == len(modules)
    assert [row for row in rows if len(row.split(" | ")[1]) < 10] == []
