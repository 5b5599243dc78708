"""Each advice of doctor is followed to the letter: break, ask, follow, healthy, also for the service."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cleanup.conftest import JobStore
from tests.hostile import MEMBER, OWNER, command, give, needs_root, shared_folder

pytestmark = needs_root
Break = Callable[[Path], object]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The configuration, of root, of a store whose service works as OWNER."""
    with shared_folder() as folder:
        store = JobStore(folder / "a store", now=datetime.now(UTC))
        store.job("due")
        (store.path / "backup").mkdir(mode=0o700)
        paths = {name: str(store.path / name) for name in ("uploads", "results", "temp", "logs")}
        file = folder / "cleanup_config.yaml"
        file.write_text(
            json.dumps(
                {
                    "paths": {"database": str(store.path / "jobs.db"), **paths},
                    "database": {"timezone": "UTC"},
                    "trash": {"grace_hours": 1},
                    "backup": {"enabled": True, "path": str(store.path / "backup")},
                }
            )
        )
        give(store.path, OWNER)
        assert command("clean", "--config", file, cwd=folder, uid=OWNER).returncode == 0
        yield file


def problems(config: Path, uid: int = 0) -> list[dict[str, Any]]:
    done = command("doctor", "--json", "--config", config, cwd=config.parent, uid=uid)
    found = json.loads(done.stdout)
    assert done.returncode == any(each["level"] == "problem" for each in found)
    return [each for each in found if each["level"] == "problem"]


def test_root_finds_a_healthy_service_healthy(config: Path) -> None:
    assert problems(config) == problems(config, OWNER) == []


def logs_of_root(store: Path) -> None:
    os.chown(store / "logs", 0, 0)


def log_of_root(store: Path) -> None:
    os.chown(store / "logs" / "cleanup.log", 0, 0)
    (store / "logs" / "cleanup.log").chmod(0o600)


def results_of_root(store: Path) -> None:
    os.chown(store / "results", 0, 0)
    (store / "results").chmod(0o755)


def trash_of_another_user(store: Path) -> None:
    give(store / "results" / ".eemtcleanupd-trash", MEMBER)


def trash_open_to_all(store: Path) -> None:
    (store / "temp" / ".eemtcleanupd-trash").chmod(0o777)


def backups_of_another_user(store: Path) -> None:
    os.chown(store / "backup", MEMBER, MEMBER)


def backups_open_to_all(store: Path) -> None:
    (store / "backup").chmod(0o777)


@pytest.mark.parametrize(
    ("damage", "uid"),
    [
        (logs_of_root, 0),
        (log_of_root, 0),
        (results_of_root, OWNER),
        (trash_of_another_user, 0),
        (trash_open_to_all, 0),
        (backups_of_another_user, 0),
        (backups_open_to_all, 0),
    ],
)
@pytest.mark.slow
def test_an_advice_that_root_follows_makes_the_service_healthy(config: Path, damage: Break, uid: int) -> None:
    """The user who asks is root, except where root must first see where a folder leads."""
    store = config.parent / "a store"
    damage(store)
    found = problems(config, uid)
    assert found
    for problem in found:
        done = subprocess.run(problem["advice"], shell=True, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert problems(config) == problems(config, OWNER) == []
    assert command("clean", "--config", config, cwd=config.parent, uid=OWNER).returncode == 0


def test_a_service_of_another_user_is_named_instead_of_its_files(config: Path) -> None:
    lock = config.parent / "a store" / "jobs.db.eemtcleanupd.daemon.lock"
    lock.touch()
    os.chown(lock, MEMBER, MEMBER)
    (problem,) = problems(config)
    assert problem["check"] == "user"
    assert str(MEMBER) in problem["advice"]
    assert "chown" not in problem["advice"]


def test_an_advice_quotes_a_path(config: Path) -> None:
    logs_of_root(config.parent / "a store")
    (problem,) = problems(config)
    assert f"'{config.parent}/a store/logs'" in problem["advice"]
