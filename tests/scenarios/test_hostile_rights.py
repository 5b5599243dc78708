"""The capabilities that a process of root keeps reach nothing that the owner's rights and the roots do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.hostile import (
    OWNER,
    PROGRAM_FOLDER,
    SITE_PACKAGES,
    as_user,
    command,
    give,
    needs_root,
    python,
    shared_folder,
)

pytestmark = [needs_root, pytest.mark.slow]


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


@pytest.fixture
def store(folder: Path) -> JobStore:
    """A store of OWNER with one expired job."""
    store = JobStore(folder / "store")
    store.job("due", dem="due.tif")
    store.upload("due.tif")
    give(store.path, OWNER)
    return store


def config_of(folder: Path, store: JobStore) -> Path:
    """A configuration of root."""
    paths = {name: str(store.path / name) for name in ("uploads", "results", "temp", "logs")}
    file = folder / "cleanup_config.yaml"
    file.write_text(json.dumps({"paths": {"database": str(store.path / "jobs.db"), **paths}}))
    return file


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_link_of_the_owner_makes_no_folder_of_others_a_root(
    folder: Path, store: JobStore, mode: int
) -> None:
    victim = folder / "victim"
    (victim / "due").mkdir(parents=True)
    victim.chmod(mode)
    make_old(victim)

    def swap() -> None:
        (store.path / "results").rename(store.path / "moved")
        (store.path / "results").symlink_to(victim)

    assert as_user(OWNER, swap) == 0
    done = command("clean", "--config", config_of(folder, store), cwd=folder)
    assert [path.name for path in victim.iterdir()] == ["due"]
    assert done.returncode == 3


def make_old(place: Path) -> None:
    """Let a folder look unused for long, so that no run keeps it as one that is in use."""
    for path in (*place.rglob("*"), place):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def test_no_process_leaves_code_of_the_owner_in_the_program(folder: Path, store: JobStore) -> None:
    for number in range(600):  # enough for a helper process
        (store.results("due") / str(number)).touch()
    make_old(store.results("due"))
    give(store.path, OWNER)
    program = folder / "program"
    without_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROGRAM_FOLDER / "eemtcleanupd", program / "eemtcleanupd", ignore=without_cache)
    done = subprocess.run(
        [python(), "-m", "eemtcleanupd", "clean", "--config", config_of(folder, store)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{program}:{SITE_PACKAGES}"},
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0
    assert not store.results("due").exists()
    assert [path for path in program.rglob("*") if path.stat().st_uid != 0] == []
