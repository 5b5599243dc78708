"""Valid and invalid requests that schemathesis generates from the OpenAPI description."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.web.conftest import RunningDaemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_EXAMPLES = int(os.environ.get("STRESS_EXAMPLES", "25"))


@pytest.mark.timeout(80 + 10 * _EXAMPLES)
def test_schemathesis_finds_no_error(daemon: RunningDaemon, tmp_path: Path) -> None:
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [
            command,
            "run",
            f"{daemon.url}/api/cleanup/openapi.json",
            "--header",
            f"Authorization: Bearer {daemon.tokens['clean']}",
            "--checks",
            "all",
            "--max-examples",
            str(_EXAMPLES),
            "--exclude-path",
            "/api/cleanup/events",  # the stream does not end
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
    assert daemon.process.poll() is None
    assert daemon.store.results("live").exists()
