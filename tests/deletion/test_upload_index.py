from __future__ import annotations

import os
from pathlib import Path

import pytest

from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.deletion.upload_index import UploadIndex
from eemtcleanupd.model import RootName


def found(index: UploadIndex, *ids: str) -> list[tuple[str, str, bool]]:
    return sorted((owner, each.artifact.name, each.is_folder) for owner, each in index.named_after(ids))


def test_uploads_are_found_by_every_id_that_their_name_begins_with(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff_x")
    for name in ("a_b_x.tif", "a_x.tif", "plain.tif", "_x", odd):
        (tmp_path / name).touch()
    (tmp_path / "a_folder").mkdir()
    index = UploadIndex(open_root(RootName.UPLOADS, tmp_path))
    assert found(index, "a") == [("a", "a_b_x.tif", False), ("a", "a_folder", True), ("a", "a_x.tif", False)]
    assert found(index, "a_b", "plain.tif", "") == [("a_b", "a_b_x.tif", False)]
    assert found(index, os.fsdecode(b"\xff"), "\ud83d") == [(os.fsdecode(b"\xff"), odd, False)]
    index.close()


def test_many_ids_are_looked_up_in_pages(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"job{number}_x").touch()
    index = UploadIndex(open_root(RootName.UPLOADS, tmp_path))
    assert len(found(index, *(f"job{number}" for number in range(2000)))) == 1200
    index.close()


@pytest.mark.parametrize("ids", [(), ("a",)])
def test_without_a_folder_there_are_no_uploads(ids: tuple[str, ...]) -> None:
    assert found(UploadIndex(None), *ids) == []
