"""A log file that is not writable stops nothing, and is reported once until it is writable again."""

from __future__ import annotations

import errno
import io
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd.logs import log, log_to_file


class FullAtClose(io.TextIOWrapper):
    """A file whose close fails because data could not be written, as on NFS (close(2))."""

    def close(self) -> None:
        super().close()
        raise OSError(errno.ENOSPC, "No space left on device")


class Full(io.TextIOWrapper):
    is_full = True

    def flush(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().flush()


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def handler(tmp_path: Path, reports: list[str]) -> Iterator[logging.FileHandler]:
    handler = log_to_file(tmp_path / "log", form="text", level="INFO", on_error=reports.append)
    yield handler
    log.removeHandler(handler)
    handler.close()


def names_file_and_reason(report: str, file: Path) -> bool:
    return str(file) in report and "No space left on device" in report


def test_a_file_that_fails_at_close_during_rotation_loses_one_record(
    tmp_path: Path, handler: logging.handlers.RotatingFileHandler, reports: list[str]
) -> None:
    assert handler.stream is not None
    handler.stream.close()
    handler.stream = FullAtClose((tmp_path / "log").open("ab"), write_through=True)
    handler.maxBytes = 1
    log.info("lost")
    handler.maxBytes = 0
    log.info("kept")
    assert len(reports) == 1
    assert names_file_and_reason(reports[0], tmp_path / "log")
    assert "kept" in (tmp_path / "log").read_text()


def test_an_error_is_reported_again_after_a_successful_write(
    tmp_path: Path, handler: logging.FileHandler, reports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    writable = handler.stream
    full = [Full(io.BytesIO()), Full(io.BytesIO())]
    for stream in (full[0], writable, full[1]):
        handler.stream = stream
        log.info("one")
        log.info("two")
    handler.stream = writable
    for stream in full:
        stream.is_full = False
        stream.close()
    assert len(reports) == 2
    assert all(names_file_and_reason(report, tmp_path / "log") for report in reports)
    assert capsys.readouterr() == ("", "")
