"""The log file where it cannot be written: said once, and again only when it could be in between."""

from __future__ import annotations

import errno
import io
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd.logs.setup import log, log_to_file

TOLD = "The log {} cannot be written (No space left on device); the work goes on without it"


class FullAtClose(io.TextIOWrapper):
    """A file whose close reports what could not be written, as on NFS (close(2))."""

    def close(self) -> None:
        super().close()
        raise OSError(errno.ENOSPC, "No space left on device")


class Full(io.TextIOWrapper):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def handler(tmp_path: Path, told: list[str]) -> Iterator[logging.FileHandler]:
    handler = log_to_file(tmp_path / "log", form="text", level="INFO", tell=told.append)
    yield handler
    log.removeHandler(handler)
    handler.close()


def test_a_file_that_fails_as_it_is_closed_to_be_rotated_takes_one_record_with_it(
    tmp_path: Path, handler: logging.handlers.RotatingFileHandler, told: list[str]
) -> None:
    assert handler.stream is not None
    handler.stream.close()
    handler.stream = FullAtClose((tmp_path / "log").open("ab"), write_through=True)
    handler.maxBytes = 1
    log.info("lost")
    handler.maxBytes = 0
    log.info("kept")
    assert told == [TOLD.format(tmp_path / "log")]
    assert "kept" in (tmp_path / "log").read_text()


def test_it_is_told_again_when_it_could_be_written_in_between(
    tmp_path: Path, handler: logging.FileHandler, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    good = handler.stream
    for stream in (Full(io.BytesIO()), good, Full(io.BytesIO())):
        handler.stream = stream
        log.info("one")
        log.info("two")
    handler.stream = good
    assert told == [TOLD.format(tmp_path / "log")] * 2
    assert capsys.readouterr() == ("", "")
