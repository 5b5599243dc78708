"""Commands of a user in a current folder that this user cannot enter, as after `sudo -u` in root's home."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import OWNER, command, environment, needs_root, python, shared_folder

pytestmark = needs_root


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach, with one that only root can enter, and one of the user."""
    with shared_folder() as place:
        (place / "private").mkdir(mode=0o700)
        (place / "own").mkdir()
        os.chown(place / "own", OWNER, OWNER)
        yield place


@pytest.fixture
def config(place: Path) -> Path:
    store = place / "own" / "store"
    done = command("demo", store, "--jobs", "60", cwd=place / "private", uid=OWNER)
    assert done.returncode == 0, done.stderr
    return store / "cleanup_config.yaml"


@pytest.mark.slow
def test_commands_with_a_configuration_do_not_need_the_current_folder(place: Path, config: Path) -> None:
    for call in (("check",), ("doctor",), ("clean",), ("history",), ("status",), ("holds",), ("report",)):
        done = command(*call, "--config", config, cwd=place / "private", uid=OWNER)
        assert (done.returncode, done.stderr) == (0, ""), call
    stopped = command("stop", "--db-path", config.parent / "jobs.db", cwd=place / "private", uid=OWNER)
    assert (stopped.returncode, stopped.stderr) == (0, "")


def test_commands_without_a_configuration_fail_with_one_message(place: Path) -> None:
    done = command("status", cwd=place / "private", uid=OWNER)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_root_finds_the_daemon_of_a_user_whose_configuration_is_invalid(place: Path, config: Path) -> None:
    daemon = subprocess.Popen(
        [python(), "-m", "eemtcleanupd", "run", "--config", config],
        user=OWNER,
        group=OWNER,
        extra_groups=[],
        env=environment(),
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not list(config.parent.glob("*.status.json")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        config.write_text("{", encoding="utf-8")
        document = json.loads(command("status", "--json", "--config", config, cwd=place).stdout)
        assert (document["running"], document["pid"]) == (True, daemon.pid)
        assert command("reload", "--config", config, cwd=place).returncode == 2
        stopped = json.loads(command("stop", "--json", "--config", config, cwd=place).stdout)
        assert stopped == {"stopped": True, "pid": daemon.pid}
        assert daemon.wait(10) == 0
    finally:
        daemon.kill()
        daemon.wait()
