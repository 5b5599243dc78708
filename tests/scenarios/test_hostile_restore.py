"""The owner of a job store works against backups and restores of root, and gets nothing of root's rights.

Each test lets the owner act at one known step.  ``canary`` is a folder of root outside the store.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.restore import RestoreRequest, restore, restore_backup
from eemtcleanupd.errors import BackupError, RootError, TrashError
from eemtcleanupd.events import RunReport
from eemtcleanupd.hookspecs import ArtifactPath
from eemtcleanupd.model import Job
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.privileges import User, become
from tests.cleanup.conftest import JobStore
from tests.hostile import UID

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which acts against another user")

TRASH = ".eemtcleanupd-trash"
OLD = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach; the folders of pytest are root's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def store(place: Path) -> JobStore:
    """A job store with an expired job, all of the hostile owner's."""
    store = JobStore(place / "store")
    store.job("a")
    job = store.results("a")
    (job / "link").symlink_to("/etc/passwd")
    os.mkfifo(job / "pipe")
    os.link(job / "global/day_0.tif", job / "same")
    give_away(store.path)
    return store


@pytest.fixture
def canary(place: Path) -> Iterator[Path]:
    """A folder of root that looks like a trash, a root and a backup folder, and must never change."""
    folder = place / "canary"
    (folder / "backup-1.1").mkdir(parents=True)
    (folder / "backup-1.1/precious").write_text("precious")
    (folder / "a").mkdir()
    (folder / "a/secret").write_text("secret")
    expired = folder / f"a@{OLD:%Y%m%dT%H%M%S}000000Z.tar.gz"
    expired.write_text("the backup of another store")
    os.utime(expired, (0, 0))
    before = fingerprint(folder)
    yield folder
    assert fingerprint(folder) == before


def give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)


def fingerprint(folder: Path) -> dict[str, tuple[object, ...]]:
    return {
        str(path): (
            (status := path.lstat()).st_ino,
            status.st_mode,
            status.st_uid,
            status.st_nlink,
            status.st_mtime_ns,
            hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None,
        )
        for path in (folder, *sorted(folder.rglob("*")))
    }


def as_owner(action: Callable[[], object]) -> None:
    """Act in a child process with the rights of the store's owner."""
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            action()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class _Trap:
    """Lets the owner act once, right before the first system call that Python reports as this event."""

    def __init__(self) -> None:
        self.event = ""
        self.matches: Callable[[tuple[Any, ...]], bool] = lambda _: True
        self.action: Callable[[], object] = lambda: None
        self.sprung = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == self.event and self.matches(arguments):
            self.event, self.sprung = "", True
            as_owner(self.action)


_trap = _Trap()


@pytest.fixture
def trap() -> Iterator[Callable[..., None]]:
    """Set the trap for an event of sys.addaudithook; the test fails if nothing springs it."""
    if not getattr(sys, "_eemtcleanupd_trap", False):
        sys._eemtcleanupd_trap = True  # type: ignore[attr-defined]  # an audit hook stays forever
        sys.addaudithook(_trap)
    _trap.sprung = True

    def set_trap(
        event: str, action: Callable[[], object], matches: Callable[[tuple[Any, ...]], bool] = lambda _: True
    ) -> None:
        _trap.event, _trap.action, _trap.matches, _trap.sprung = event, action, matches, False

    yield set_trap
    _trap.event = ""
    assert _trap.sprung


def swap(entry: Path, target: Path) -> Callable[[], None]:
    """Return what moves an entry of the owner's folder away and plants a link in its place."""

    def act() -> None:
        entry.rename(entry.with_name("moved-away"))
        entry.symlink_to(target)

    return act


def run(store: JobStore, *, hooks: Plugins | None = None, **options: object) -> RunReport:
    config = store.config(
        run_as="root", backup__enabled=True, backup__path=str(store.path / "backup"), **options
    )
    plugins = hooks or Plugins(config)
    return clean(config, RunRequest("root"), emit=lambda _: None, hooks=plugins, clock=lambda: store.now)


def request(store: JobStore, job_id: str = "a", only: Sequence[str] = ()) -> RestoreRequest:
    return RestoreRequest(
        store.config(run_as="root"), job_id, only, False, "root", NullHooks(), lambda: store.now
    )


def backup_of(store: JobStore) -> Path:
    (path,) = (store.path / "backup").glob("a@*")
    return path


# -- roots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results", "uploads", "temp"])
def test_a_first_run_takes_no_root_to_which_a_link_of_the_owner_leads(
    store: JobStore, canary: Path, name: str
) -> None:
    as_owner(swap(store.path / name, canary))
    with pytest.raises(RootError):
        run(store)


# -- backup restore ----------------------------------------------------------------------------------


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("event", ["os.mkdir", "os.symlink", "os.link", "os.chown", "os.utime"])
def test_a_backup_is_unpacked_into_the_open_trash_wherever_its_name_leads(
    store: JobStore, canary: Path, trap: Callable[..., None], event: str
) -> None:
    run(store)
    trash = store.path / "results" / TRASH
    trap(event, swap(trash, canary), lambda arguments: arguments[0] != TRASH)
    restore_backup(request(store), [backup_of(store)])
    assert (store.results("a") / "global/day_0.tif").read_bytes() == b"x" * 5000
    assert store.results("a").stat().st_uid == UID
    assert (store.results("a") / "link").is_symlink()


def test_what_a_killed_restore_left_is_deleted_in_the_open_trash(
    store: JobStore, canary: Path, trap: Callable[..., None]
) -> None:
    run(store)
    trash = store.path / "results" / TRASH
    (trash / "backup-1.1/a/global").mkdir(parents=True)
    (trash / "backup-1.1/a/global/day_0.tif").write_text("unpacked")
    trap("os.scandir", swap(trash, canary), _is_open_trash(trash))
    restore_backup(request(store), [backup_of(store)])
    assert not (trash.with_name("moved-away") / "backup-1.1").exists()


def _is_open_trash(trash: Path) -> Callable[[tuple[Any, ...]], bool]:
    """Return a test whether a call lists the trash by its descriptor."""

    def test(arguments: tuple[Any, ...]) -> bool:
        return isinstance(arguments[0], int) and os.fstat(arguments[0]).st_ino == trash.stat().st_ino

    return test


def test_a_restore_that_fails_deletes_what_it_unpacked_in_the_open_trash(
    store: JobStore, canary: Path, trap: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store)
    trash = store.path / "results" / TRASH

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "mkfifo", refuse)
    trap("os.mkdir", swap(trash, canary), lambda arguments: arguments[0] != TRASH)
    with pytest.raises(BackupError):
        restore_backup(request(store), [backup_of(store)])
    assert not store.results("a").exists()
    assert os.listdir(trash.with_name("moved-away")) == [".root-id"]


def test_another_folder_of_root_in_place_of_the_trash_is_refused(
    store: JobStore, trap: Callable[..., None]
) -> None:
    run(store, trash__grace_hours=24)
    trash, planted = store.path / "results" / TRASH, store.path / "results/by-a-container"
    planted.mkdir()  # as a container does that runs as root

    def act() -> None:
        trash.rename(trash.with_name("moved-away"))
        planted.rename(trash)

    # The check of the roots has read the marker by then.
    trap("os.mkdir", act, lambda arguments: arguments[0] == TRASH)
    with pytest.raises(RootError):
        restore(request(store))
    assert os.listdir(trash) == []


@pytest.mark.parametrize("owner", [0, UID])
def test_no_file_comes_back_with_setuid_or_setgid(store: JobStore, owner: int) -> None:
    program, folder = store.results("a") / "program", store.results("a") / "folder"
    program.write_bytes(b"\x7fELF")
    os.chown(program, owner, owner)
    program.chmod(0o6755)
    folder.mkdir()
    os.chown(folder, UID, UID)
    folder.chmod(0o2775)
    run(store)
    done = restore_backup(request(store), [backup_of(store)])
    status = program.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, owner, owner)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2775  # passes on the group, and no rights
    (warning,) = done.warnings
    assert "results/a/program" in warning


def test_a_file_of_another_owner_comes_back_as_theirs(store: JobStore) -> None:
    secret = store.results("a") / "secret.txt"
    secret.write_text("secret")  # such as a hard link to a file of root
    secret.chmod(0o600)
    run(store)
    assert stat.S_IMODE(backup_of(store).stat().st_mode) == 0o600
    restore_backup(request(store), [backup_of(store)])
    assert (secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == (0, 0o600)


# -- trash restore -----------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["open", "os.rmdir"])
def test_an_item_comes_back_from_the_open_trash(
    store: JobStore, canary: Path, trap: Callable[..., None], event: str
) -> None:
    run(store, trash__grace_hours=24)
    (item,) = [name for name in os.listdir(store.path / "results" / TRASH) if name[0] != "."]
    trap(event, swap(store.path / "results" / TRASH, canary), lambda arguments: arguments[0] == item)
    restore(request(store))
    assert (store.results("a") / "global/day_0.tif").exists()


def test_the_time_of_a_file_of_others_is_not_changed(store: JobStore, canary: Path) -> None:
    os.link(canary / "a/secret", store.path / "results/orphan")  # where protected_hardlinks is off
    stale = fingerprint(canary)
    store.wait(days=9)
    options: dict[str, Any] = {"trash__grace_hours": 24, "orphans__delete_after_hours": 24}
    run(store, **options)
    assert not (store.path / "results/orphan").exists()
    restore(request(store, "results/orphan"))
    assert fingerprint(canary) == stale
    (store.path / "results/orphan").unlink()


def test_a_link_in_place_of_an_item_changes_no_time_of_a_file_of_root(store: JobStore, canary: Path) -> None:
    (store.path / "results/precious").write_text("an orphan with the name of a file of root")
    store.wait(days=9)
    options: dict[str, Any] = {"trash__grace_hours": 24, "orphans__delete_after_hours": 24}
    run(store, **options)
    give_away(store.path)
    (item,) = [path.parent for path in (store.path / "results").glob(f"{TRASH}/*/precious")]
    as_owner(swap(item, canary / "backup-1.1"))
    if (child := os.fork()) == 0:
        with suppress(BaseException):
            become(User(UID, UID, "owner", ()))
            with suppress(TrashError, OSError):
                restore(request(store, "results/precious"))
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- making backups ----------------------------------------------------------------------------------


class _Before(Plugins):
    """Lets the owner act when a job's backup is about to be made."""

    action: Callable[[], object] = staticmethod(lambda: None)

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        as_owner(self.action)
        return super().before_stage(job, artifacts)


def test_a_root_that_is_swapped_during_the_run_is_not_copied(store: JobStore, canary: Path) -> None:
    config = store.config(run_as="root", backup__enabled=True, backup__path=str(store.path / "backup"))
    hooks = _Before(config)
    hooks.action = swap(store.path / "results", canary)
    report = run(store, hooks=hooks)
    assert (report.successful.jobs, report.errors) == (0, 1)
    assert not list((store.path / "backup").glob("a@*"))


def test_no_backup_is_written_or_deleted_where_a_link_of_the_owner_leads(
    store: JobStore, canary: Path
) -> None:
    as_owner(lambda: (store.path / "backup").symlink_to(canary))
    report = run(store)
    assert (report.successful.jobs, report.errors) == (0, 1)
    assert (store.results("a") / "global/day_0.tif").exists()


def test_expired_backups_are_deleted_only_in_the_open_folder(
    store: JobStore, canary: Path, trap: Callable[..., None]
) -> None:
    run(store)
    backup = backup_of(store)
    os.utime(backup, (0, 0))
    trap("os.remove", swap(backup.parent, canary), lambda arguments: Path(arguments[0]).name == backup.name)
    folder = BackupFolder(backup.parent)
    (deleted,) = folder.expire(store.now + timedelta(days=400), timedelta(days=30))
    assert deleted.path == backup
    assert os.listdir(store.path / "moved-away") == []
    with pytest.raises(BackupError):  # from here on the link is there before the folder is opened
        folder.expire(store.now + timedelta(days=400), timedelta(days=30))


def test_a_backup_is_verified_and_unpacked_from_one_folder(
    store: JobStore, canary: Path, trap: Callable[..., None]
) -> None:
    run(store)
    backup = backup_of(store)
    other = canary.parent / "other"
    other.mkdir()
    (other / backup.name).write_bytes(b"another archive of root")
    trap("os.mkdir", swap(store.path / "backup", other), lambda arguments: arguments[0] != TRASH)
    restore_backup(request(store), [backup])
    assert (store.results("a") / "global/day_0.tif").exists()
    shutil.rmtree(other)
