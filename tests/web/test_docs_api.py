"""The examples of docs/how-to/http-api.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import needs
from tests.web.conftest import RunningDaemon

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "http-api.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def run(daemon: RunningDaemon, *command: str) -> str:
    environment = {**os.environ, "TOKEN": daemon.tokens["clean"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.slow
@needs("curl")
def test_the_curl_examples(daemon: RunningDaemon) -> None:
    (script,) = examples("bash")
    assert script.count("curl") == 3
    output = run(
        daemon,
        "bash",
        "-ec",
        script.replace("http://localhost:5001", daemon.url).replace("curl ", "curl -sf "),
    )
    assert output.count('"success": true') == 3
    assert daemon.store.cleaned() == {"a", "b"}


@pytest.mark.slow
def test_the_python_client(daemon: RunningDaemon) -> None:
    client = examples("python")[0]
    output = run(daemon, sys.executable, "-c", client.replace("http://localhost:5001", daemon.url))
    assert "Cleanup preview:\n  Successful jobs cleaned: 1\n  Failed jobs cleaned: 1\n" in output
    assert "Cleanup completed:\n  Successful jobs cleaned: 1\n" in output
