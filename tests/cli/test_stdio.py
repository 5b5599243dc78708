"""A run whose output cannot be written continues, is recorded, and reports the loss once."""

from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Protocol

import pytest

from eemtcleanupd.cli import stdio
from eemtcleanupd.cli.stdio import SafeStdout
from tests.cli.test_clean import options, rows
from tests.commands import Commands
from tests.conftest import Aged

NO_SPACE = os.strerror(errno.ENOSPC)


class RunInto(Protocol):
    """Runs a command with the given standard output."""

    def __call__(self, stdout: IO[bytes], *args: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_into(tmp_path: Path, commands: Commands) -> RunInto:
    def run(stdout: IO[bytes], *args: str) -> subprocess.CompletedProcess[str]:
        return commands.run(list(args), env={"HOME": str(tmp_path)}, cwd=tmp_path, stdout=stdout)

    return run


def full() -> IO[bytes]:
    return open("/dev/full", "wb")


def closed_pipe() -> IO[bytes]:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


LOST = pytest.mark.parametrize(
    ("lost", "code", "error"), [(full, 1, NO_SPACE), (closed_pipe, 141, "")], ids=["full", "closed"]
)


@pytest.mark.fast_parameters(1)
@LOST
@pytest.mark.parametrize("option", ["--verbose", "--json"])
def test_a_run_that_cannot_print_deletes_and_records_all_jobs(
    sample_store: Path, aged: Aged, run_into: RunInto, lost: Callable[[], IO[bytes]], code: int, error: str,
    option: str,
) -> None:  # fmt: skip
    store = aged(sample_store, 10)
    with closing(lost()) as stdout:
        done = run_into(stdout, "clean", *options(store), option)
    assert (done.returncode, error in done.stderr, done.stderr.count("\n")) == (code, True, bool(error))
    assert rows(store, "SELECT outcome, successful, failed, errors FROM cleanup_runs") == [
        ("success", 3, 3, 0)
    ]
    assert rows(store, "SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL") == [(6,)]
    assert rows(store, "SELECT count(*) FROM cleanup_log WHERE action = 'cleaned'") == [(6,)]
    assert rows(store, "SELECT count(*) FROM cleanup_intents") == [(0,)]


@LOST
@pytest.mark.parametrize("command", ["status", "history", "report", "check", "trash list", "--help"])
def test_a_command_that_cannot_print_reports_it_once_unless_its_pipe_is_closed(
    run_into: RunInto, tmp_path: Path, sample_store: Path, lost: Callable[[], IO[bytes]], code: int,
    error: str, command: str,
) -> None:  # fmt: skip
    names = {"database": "jobs.db", "results": "results", "uploads": "uploads", "temp": "temp"}
    paths = {name: f"{sample_store}/{place}" for name, place in names.items()}
    (tmp_path / "cleanup_config.yaml").write_text(json.dumps({"paths": paths}))
    with closing(lost()) as stdout:
        done = run_into(stdout, *command.split())
    assert (done.returncode, error in done.stderr, done.stderr.count("\n")) == (code, True, bool(error))


def test_a_run_whose_json_output_has_no_space_is_recorded(sample_store: Path, aged: Aged) -> None:
    store = aged(sample_store, 10)
    code = (
        "import sys, tempfile; from eemtcleanupd.report import run_document;"
        "from eemtcleanupd.cli.main import main;"
        "run_document.MEMORY_LIMIT_BYTES = 1; tempfile.tempdir = '/proc/nowhere'; main()"
    )
    command = [sys.executable, "-c", code, "clean", "--json", *options(store)]
    done = subprocess.run(command, cwd=store, capture_output=True, text=True, timeout=100, check=False)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["success"], answer["exit_code"]) == (1, False, 1)
    assert done.stderr == f"eemtcleanupd: error: {answer['error']}\n"
    assert os.strerror(errno.ENOENT) in answer["error"]
    assert rows(store, "SELECT outcome, successful, failed FROM cleanup_runs") == [("success", 3, 3)]


def test_the_exit_code_of_the_command_wins_over_that_of_lost_output(run_into: RunInto) -> None:
    with closing(closed_pipe()) as stdout:
        done = run_into(stdout, "clean", "--json", "--db-path", "nowhere.db")
    assert done.returncode == 3
    assert done.stderr.startswith("eemtcleanupd: error: ")
    assert done.stderr.count("\n") == 1


def test_a_dry_run_whose_output_is_closed_stops_early(
    sample_store: Path, aged: Aged, run_into: RunInto
) -> None:
    command = ["clean", *options(aged(sample_store, 10)), "--dry-run", "--debug", "--batch-size", "1"]
    with closing(closed_pipe()) as stdout:
        unread = run_into(stdout, *command)
    with Path(os.devnull).open("wb") as stdout:
        read = run_into(stdout, *command)
    assert (unread.returncode, read.returncode) == (141, 0)
    assert unread.stderr.count("SELECT") < read.stderr.count("SELECT")
    assert "Traceback" not in unread.stderr


def test_a_run_with_closed_standard_streams_is_recorded(sample_store: Path, aged: Aged) -> None:
    store = aged(sample_store, 10)
    command = [sys.executable, "-m", "eemtcleanupd", "clean", "--json", *options(store)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=store, timeout=100, check=False
    )
    assert done.returncode == 0
    assert rows(store, "SELECT outcome FROM cleanup_runs") == [("success",)]


def test_all_output_is_written_to_a_non_blocking_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "wb", buffering=0) as full_pipe:
        while full_pipe.write(bytes(4096)):
            pass
        wait = select.select

        def read_once_it_waits(*files: Any) -> Any:
            pipe.read(1 << 20)
            return wait(*files)

        monkeypatch.setattr(select, "select", read_once_it_waits)
        stdout = SafeStdout(writing)
        assert stdout.write(b"last") == 4
        assert (pipe.read(4), stdout.error) == (b"last", None)


def test_text_that_the_terminal_cannot_show_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii", errors="strict") as out:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, out)
        stdio.install()
        print("é\ud800", flush=True)
    assert (tmp_path / "out").read_text() == "\\xe9\\ud800\n"


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize(
    "command",
    ["clean", "check", "run", "run --detach", "reload --db-path jobs.db", "audit verify"],
)
def test_a_deleted_working_folder_is_one_error(tmp_path: Path, command: str) -> None:
    place = tmp_path / "deleted"
    place.mkdir()
    program = f"import os, sys; os.rmdir({str(place)!r}); os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, "-m", "eemtcleanupd", *command.split()],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert os.strerror(errno.ENOENT) in done.stderr
    assert done.stderr.count("\n") == 1
