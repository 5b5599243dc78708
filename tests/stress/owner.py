"""The owner of a job store works against root, which cleans and restores there, for hundreds of runs.

The owner swaps everything below the store for links, FIFOs and folders, and back, as fast as it can.  What
root does meanwhile can fail, but no step of it may reach ``canary``, a folder of root beside the store.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.restore import RestoreRequest, restore, restore_backup
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.model import Trigger
from eemtcleanupd.plugins import Plugins, load
from tests.cleanup.conftest import JobStore
from tests.hostile import UID, environment, python
from tests.stress.races import Outcome, _add, _fill, _fingerprint

_TRASH = ".eemtcleanupd-trash"
_ROOTS = ("results", "uploads", "temp")
_SECONDS = 60
_REFUSED = 3
_CONFIG = """
paths: {{database: {store}/jobs.db, uploads: {store}/uploads, results: {store}/results, temp: {store}/temp,
  logs: {logs}}}
run_as: {run_as}
database: {{timezone: UTC}}
safety: {{max_fraction: 1, min_idle_minutes: 0}}
trash: {{grace_hours: 1}}
retention: {{failed_jobs: {{keep_error_logs: true}}}}
backup: {{enabled: true, path: {store}/backup}}
notifications: {{audit_log: {{enabled: true, path: {logs}/audit.jsonl}}}}
"""


# -- the owner ---------------------------------------------------------------------------------------


class _Owner:
    """Swaps entries of its store; what root took meanwhile stays as it is."""

    def __init__(self, store: Path, canary: Path) -> None:
        self._store = store
        self._canary = canary
        self._number = 0

    def work(self) -> None:
        """Attack until this process is killed; every third step is a rest, in which root can succeed."""
        attacks = (
            *(self._swap_trash, self._swap_item, self._swap_root, self._swap_entry),
            *(self._swap_file, self._swap_backups),
        )
        while True:
            with suppress(OSError):
                self._submit()
            for _ in range(30):
                with suppress(OSError, IndexError):  # a folder can be empty
                    random.choice(attacks)()
                time.sleep(random.choice([0, 0, 0.001, 0.02]))
            time.sleep(random.uniform(0, 1.5))

    def _submit(self) -> None:
        self._number += 1
        name = f"job{self._number}"
        job = self._store / "results" / name
        program = _fill(job)[0]
        program.chmod(0o6755)
        (job / "run.log").write_text("log")
        (job / "link").symlink_to(self._canary)
        os.mkfifo(job / "pipe")
        with suppress(OSError):  # where protected_hardlinks is off
            os.link(self._canary / "a/day_0.tif", job / "canary.log")
        _add(self._store, name, random.choice(["completed", "failed"]), None, days=30)

    def _swap_trash(self) -> None:
        self._swap(self._store / random.choice(_ROOTS) / _TRASH)

    def _swap_item(self) -> None:
        """Swap an item of the trash, or what is in it; only a process that became the owner lets it."""
        trash = self._store / random.choice(_ROOTS) / _TRASH
        item = trash / random.choice(os.listdir(trash))
        self._swap(item if random.random() < 0.5 else item / random.choice(os.listdir(item)))

    def _swap_root(self) -> None:
        self._swap(self._store / random.choice(_ROOTS))

    def _swap_backups(self) -> None:
        self._swap(self._store / "backup")

    def _swap_entry(self) -> None:
        results = self._store / "results"
        entry = results / random.choice(os.listdir(results))
        if random.random() < 0.5 and entry.name != _TRASH:
            entry = entry / random.choice(os.listdir(entry))
        self._swap(entry)

    def _swap_file(self) -> None:
        """Put something in place of a file that root makes beside the database."""
        names = {path.name for path in self._store.iterdir() if path.name.startswith("jobs.db")} - {"jobs.db"}
        suffixes = ("-journal", "-wal", "-shm", ".eemtcleanupd.status", ".eemtcleanupd.lock")
        self._swap(self._store / random.choice([*names, *(f"jobs.db{suffix}" for suffix in suffixes)]))

    def _swap(self, entry: Path) -> None:
        aside = self._store / f"aside-{random.randrange(10**9)}"
        with suppress(FileNotFoundError):
            entry.rename(aside if entry.name != _TRASH else entry.with_name(aside.name))
        try:
            self._plant(entry)
            time.sleep(random.choice([0, 0, 0.001, 0.01, 0.2]))
        finally:
            with suppress(OSError):
                entry.unlink() if not entry.is_dir() or entry.is_symlink() else entry.rmdir()
            for place in (aside, entry.with_name(aside.name)):
                with suppress(FileNotFoundError):
                    place.rename(entry)

    def _plant(self, entry: Path) -> None:
        kind = random.randrange(5)
        if kind < 2:
            entry.symlink_to(self._canary)
        elif kind == 2:
            entry.symlink_to(self._canary / random.choice(["a", "a/day_0.tif", "new"]))
        elif kind == 3:
            os.mkfifo(entry)
        else:
            entry.mkdir()


@contextmanager
def _working_owner(store: Path, canary: Path) -> Iterator[int]:
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            random.seed()
            _Owner(store, canary).work()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError, ChildProcessError):  # it has ended, which is a fault
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


# -- root --------------------------------------------------------------------------------------------


def _as_library(config_path: Path, *words: str) -> tuple[int, str]:
    """Do in a child process of root what a command does, without becoming the store's owner."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            signal.alarm(_SECONDS)
            with os.fdopen(os.dup(writer), "w") as stacks:
                faulthandler.dump_traceback_later(_SECONDS - 5, file=stacks)
                _call(config_path, *words)
            code = 0
        except CleanupError:
            code = _REFUSED
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def _call(config_path: Path, what: str, verb: str = "", job_id: str = "") -> None:
    config = load(config_path, environ={}, cwd=config_path.parent).config
    hooks = Plugins(config)
    if verb == "restore":
        request = RestoreRequest(config, job_id, (), False, "root", hooks, system_clock)
        if what == "trash":
            restore(request)
        elif backups := BackupFolder(config.backup.path).all(job_id):
            restore_backup(request, [backups[-1].path])
        return
    run_request = RunRequest("root")
    if what == "trash":
        run_request = RunRequest("root", Trigger.TRASH, purge_older_than=timedelta(), forget_missing=True)
    clean(config, run_request, emit=lambda _: None, hooks=hooks)


def _as_command(config_path: Path, *words: str) -> tuple[int, str]:
    """Run a command of root in a process of its own."""
    options = ["--yes"] if words[-1] == "purge" else []
    command = [python(), "-m", "eemtcleanupd", *words, *options, "--config", str(config_path)]
    with subprocess.Popen(
        command,
        cwd="/",
        env={**environment(), "PYTHONFAULTHANDLER": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # prints the stack of each thread
            return -signal.SIGALRM, process.communicate()[0][-4000:]
    if "Traceback" in output:
        return 1, output[-4000:]
    return process.returncode and _REFUSED, ""


def _words(store: Path) -> tuple[str, ...]:
    """Return the next command: mostly runs, and restores of some job from the trash or from a backup."""
    choice = random.random()
    if choice < 0.5:
        return ("clean",)
    if choice < 0.6:
        return ("trash", "purge")
    with suppress(OSError):
        names = sorted({path.name.partition("@")[0] for path in (store / "backup").glob("job*@*")})
        if names:
            return ("trash" if choice < 0.8 else "backup", "restore", random.choice(names))
    return ("clean",)


def run(rounds: int) -> Outcome:
    """Let root clean and restore so many times, half of them as the library and half as commands."""
    outcome = Outcome()
    ways: tuple[Callable[..., tuple[int, str]], ...] = (_as_library, _as_command)
    for way in ways:
        _run(rounds // 2, way, outcome)
    return outcome


def _run(rounds: int, way: Callable[..., tuple[int, str]], outcome: Outcome) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        store = JobStore(folder / "store", now=datetime.now(UTC)).path
        for path in (store, *store.rglob("*")):
            os.chown(path, UID, UID)
        own = folder / "own"
        own.mkdir(mode=0o700)
        config_path = own / "cleanup_config.yaml"
        is_library = way is _as_library  # which stays root; a command becomes the owner
        logs, run_as = (own / "logs", "root") if is_library else (store / "logs", "owner")
        config_path.write_text(_CONFIG.format(store=store, logs=logs, run_as=run_as))
        canary = folder / "canary"
        for place in ("a", _TRASH, "backup"):
            _fill(canary / place)
        before = _fingerprint(canary)
        with _working_owner(store, canary) as owner:
            for _ in range(rounds):
                words = _words(store)
                code, output = way(config_path, *words)
                ending = "done" if code == 0 else "refused"
                outcome.done[f"{way.__name__[1:]}: {' '.join(words[:2])} {ending}"] += 1
                what = f"{words} of root ({way.__name__})"
                if code == -signal.SIGALRM:
                    outcome.faults.append(f"{what} hung for {_SECONDS} seconds: {output}")
                elif code not in {0, _REFUSED}:
                    outcome.faults.append(f"{what} ended with {code}: {output}")
                if _fingerprint(canary) != before:
                    outcome.faults.append(f"{what} touched the canary")
                    before = _fingerprint(canary)
            if os.waitpid(owner, os.WNOHANG) != (0, 0):
                outcome.faults.append("the owner did not work to the end")
        if not outcome.done[f"{way.__name__[1:]}: clean done"]:
            outcome.faults.append(f"no run came to its end ({way.__name__})")
        outside = sorted(path.name for path in folder.iterdir())
        if outside != ["canary", "own", "store"]:
            outcome.faults.append(f"something was created outside: {outside}")
        for path in store.rglob("*"):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if status.st_uid == 0 and status.st_mode & 0o6000:
                    outcome.faults.append(f"{path} of root is setuid")
