"""What docs/api.md shows is run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.web.conftest import Site

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def shown(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def run(site: Site, *command: str) -> str:
    environment = {**os.environ, "TOKEN": site.tokens["clean"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_curl_examples(site: Site) -> None:
    (script,) = shown("bash")
    assert script.count("curl") == 3
    output = run(
        site, "bash", "-ec", script.replace("http://localhost:5001", site.url).replace("curl ", "curl -sf ")
    )
    assert output.count('"success": true') == 3
    assert site.store.cleaned() == {"a", "b"}


def test_the_python_client(site: Site) -> None:
    client = shown("python")[0]
    output = run(site, sys.executable, "-c", client.replace("http://localhost:5001", site.url))
    assert "Cleanup preview:\n  Successful jobs cleaned: 1\n  Failed jobs cleaned: 1\n" in output
    assert "Cleanup completed:\n  Successful jobs cleaned: 1\n" in output
