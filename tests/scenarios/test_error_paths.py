"""An error names the path as the operator knows it, and where the file is now."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store")


@pytest.fixture
def immutable(store: JobStore) -> Iterator[Path]:
    """A file that root cannot delete, two folders below the results of a job."""
    store.job("a", files=0)
    file = store.results("a") / "global" / "monthly" / "total_sun.tif"
    file.parent.mkdir(parents=True)
    file.write_text("data")
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", file], check=False).returncode:
        pytest.skip("this filesystem has no immutable files")
    yield file
    subprocess.run(["chattr", "-R", "-i", store.path], check=False, stderr=subprocess.DEVNULL)


def test_every_run_names_the_old_and_the_present_path(store: JobStore, immutable: Path) -> None:
    for known in (r"results/a/global/monthly/total_sun\.tif: ", r"results/a/…/total_sun\.tif: "):
        (note,) = store.run().failures
        assert re.match(known, note.message)
        (place,) = re.findall(rf"{store.path}[^)]*", note.message)
        assert Path(place).read_text() == "data"
        store.now += timedelta(days=1)


def test_a_file_directly_in_the_results_is_named_too(store: JobStore) -> None:
    store.job("b", files=0)
    file = store.results("b") / "x.tif"
    file.parent.mkdir()
    file.write_text("data")
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", file], check=False).returncode:
        pytest.skip("this filesystem has no immutable files")
    try:
        (note,) = store.run().failures
        assert note.message.startswith("results/b/x.tif: ")
        (place,) = re.findall(rf"{store.path}[^)]*", note.message)
        assert Path(place).read_text() == "data"
    finally:
        subprocess.run(["chattr", "-R", "-i", store.path], check=False, stderr=subprocess.DEVNULL)


def test_an_artifact_that_cannot_be_moved_is_named_with_its_folder(store: JobStore) -> None:
    store.job("c", files=1)
    folder = store.results("c")
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", folder], check=False).returncode:
        pytest.skip("this filesystem has no immutable files")
    try:
        (note,) = store.run().failures
        assert "results/c/" in note.message
        assert folder.exists()
    finally:
        subprocess.run(["chattr", "-R", "-i", store.path], check=False, stderr=subprocess.DEVNULL)
