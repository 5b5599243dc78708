"""What a terminal shows: warnings beside the progress bar, narrow windows, times with their offset."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from tests.conftest import Aged, RunCli

_WARN = """
import time, click
from eemtcleanupd.cleanup import Progress
from eemtcleanupd.cli.progress import bar
with bar(Progress()):
    time.sleep(0.5)  # the bar is drawn several times a second
    click.echo("[WARNING] first", err=True)
    click.echo("[WARNING] second")
    time.sleep(0.5)
"""


def on_terminal(columns: int, *command: str | Path, cwd: Path) -> str:
    """Return what a command prints on a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8"},
    )
    os.close(slave)
    output = b""
    while True:
        try:
            read = os.read(master, 65536)
        except OSError:  # EIO: the other side has closed
            break
        output += read
        if not read:
            break
    os.close(master)
    assert process.wait(30) == 0
    return output.decode()


@pytest.mark.slow
def test_a_warning_is_on_a_line_of_its_own_beside_the_progress_bar(tmp_path: Path) -> None:
    output = on_terminal(100, "-c", _WARN, cwd=tmp_path)
    assert "Cleaning" in output, output
    for text in ("first", "second"):
        line = next(line for line in output.split("\n") if text in line)
        shown = line.rpartition("\x1b[2K")[2]  # what is left after the line was erased
        assert "Cleaning" not in shown
        assert text in shown


@pytest.mark.slow
def test_no_line_is_wider_than_the_terminal(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    (store / "cleanup_config.yaml").write_text(
        "trash: {grace_hours: 24}\nbackup: {enabled: true, path: ./backups}\n", encoding="utf-8"
    )
    run_cli("clean", cwd=store)
    run_id = json.loads(run_cli("history", "--json", cwd=store).stdout)[0]["run_id"]
    calls = (
        ("history",),
        ("history", run_id),
        ("status",),
        ("check",),
        ("report",),
        ("backup", "list"),
        ("backup", "list", "no-such-job-has-a-backup-in-this-folder"),
        ("backup", "verify"),
        ("trash", "list"),
        ("why", "ab1034c4"),
        ("roots",),
    )
    for call in calls:
        output = on_terminal(60, "-m", "eemtcleanupd", *call, cwd=store)
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip("\r")) for line in output.split("\n")]
        # A word, such as a path, is not cut: it can be copied.
        assert [line for line in lines if len(line) > 60 and " " in line.strip()] == [], call


def test_people_see_local_times_with_the_offset_and_programs_see_utc(
    sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    store = aged(sample_store, 10, timezone(timedelta(hours=5)))
    env = {"TZ": "Etc/GMT-5"}  # that is five hours east
    run_cli("clean", cwd=store, env=env)
    assert "+0500" in run_cli("history", cwd=store, env=env).stdout
    assert "+0500" in run_cli("status", cwd=store, env=env).stdout
    run = json.loads(run_cli("history", "--json", cwd=store, env=env).stdout)[0]
    last = json.loads(run_cli("status", "--json", cwd=store, env=env).stdout)["last_run"]
    assert run["started_at"].endswith("+00:00")
    assert last["started_at"] == run["started_at"]
