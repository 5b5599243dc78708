"""Requests of every form that the description allows, and of forms that it does not, find nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.web.conftest import Site

_EXAMPLES = int(os.environ.get("STRESS_EXAMPLES", "25"))


@pytest.mark.timeout(80 + 10 * _EXAMPLES)
def test_schemathesis_finds_nothing(site: Site, tmp_path: Path) -> None:
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [
            command,
            "run",
            f"{site.url}/api/cleanup/openapi.json",
            "--header",
            f"Authorization: Bearer {site.tokens['clean']}",
            "--checks",
            "all",
            "--max-examples",
            str(_EXAMPLES),
            "--exclude-path",
            "/api/cleanup/events",  # it does not end
            "--seed",
            "1",
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + 10 * _EXAMPLES,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert site.process.poll() is None
    assert site.store.results("live").exists()
