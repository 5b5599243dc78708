"""The unit file: how exposed it leaves the service, and that each of its lines says why."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eemtcleanupd.cli.main import COMMANDS

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = PACKAGING / "systemd/eemtcleanupd.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_a_security_review_finds_little() -> None:
    shown = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    score = re.search(r"Overall exposure level for .*: ([\d.]+)", shown)
    assert score is not None
    assert float(score[1]) <= 1.5


def test_every_setting_of_the_service_stands_below_its_reason() -> None:
    explained = False
    service = UNIT.read_text(encoding="utf-8").split("[Service]")[1].split("[Install]")[0]
    for line in service.splitlines():
        if not line or line.startswith("# ---"):
            explained = False
        elif line.startswith("#"):
            explained = True
        else:
            assert explained or line.startswith("ExecStart="), line


@pytest.mark.parametrize("name", COMMANDS)
def test_the_man_page_names_every_command(name: str) -> None:
    assert re.search(rf"\bCm {name}\b", (PACKAGING / "man/eemtcleanupd.8").read_text(encoding="utf-8"))


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_the_man_page_is_well_formed() -> None:
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", str(PACKAGING / "man/eemtcleanupd.8")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
