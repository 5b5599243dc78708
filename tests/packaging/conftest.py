"""One image for all tests of containers, and a job store that its user owns."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Aged
from tests.packaging.containers import OWNER, Podman, why_not


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman with the image of the Dockerfile."""
    if reason := why_not():
        pytest.skip(reason)
    podman = Podman(Path(tempfile.mkdtemp(prefix="eemt-")))  # its sockets want a short path
    try:
        podman.build()
        yield podman
    finally:
        podman("rm", "--all", "--force", "--time=0", check=False)
        podman("rmi", "--all", "--force", check=False)
        shutil.rmtree(podman.folder, ignore_errors=True)


@pytest.fixture
def store(sample_store: Path, aged: Aged) -> Path:
    """A job store of ten days ago that belongs to the image's user."""
    store = aged(sample_store, 10)
    (store / "temp").mkdir()
    (store / "logs").mkdir()
    give_away(store)
    return store


def give_away(folder: Path) -> None:
    """Give a folder and all in it to the image's user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
