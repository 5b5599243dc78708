"""The sample job store in tests/data is the one that a real web interface wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

COPY = Path(__file__).parent / "data" / "eemt-sample"
ORIGINAL = Path(__file__).parents[2] / "shared" / "eemt-sample"
"""Beside the checkout, on machines that have it; elsewhere the manifest alone stands for it."""


def manifest() -> dict[str, str]:
    lines = COPY.with_suffix(".sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("folder", [COPY, ORIGINAL] if ORIGINAL.is_dir() else [COPY])
def test_the_sample_has_exactly_the_files_of_its_manifest(folder: Path) -> None:
    assert digests(folder) == manifest()
