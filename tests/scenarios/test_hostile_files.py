"""Another local user owns the folder of the store and what lies there: links, FIFOs, locks, process ids."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eemtcleanupd.config.schema import MetricsConfig
from eemtcleanupd.daemon.status import StatusFile, read_status
from eemtcleanupd.deletion.ballast import Ballast
from eemtcleanupd.deletion.job_logs import keep_logs
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.errors import CleanupError, StoreError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.files import open_own
from eemtcleanupd.logs import log_to_file
from eemtcleanupd.model import RootName
from eemtcleanupd.notifiers.audit_log import append_text
from eemtcleanupd.notifiers.prometheus import Prometheus
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import Holder, daemon_lock, file_lock, find_daemon, signalled
from eemtcleanupd.web.supervisor import open_address
from eemtcleanupd.web.tokens import TokenFile
from tests.cli.test_run import until
from tests.conftest import Aged, RunCli
from tests.daemon.test_status import STATUS
from tests.hostile import UID, hold_flock, process_of, time_limit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")

NOW = datetime(2026, 1, 20, 2, tzinfo=UTC)


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of another user, which everybody can enter."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    os.chown(folder, UID, UID)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store(sample_store: Path, aged: Aged) -> Path:
    (aged(sample_store, 10) / "cleanup_config.yaml").write_text("api: {tokens_file: tokens.json}\n")
    return sample_store


@contextmanager
def _running(store: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a daemon on a store; yield it when it is ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "run", *args],
        cwd=store,
        env={"PATH": os.environ["PATH"], "HOME": str(store), "LANG": "C.UTF-8"},
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            until(lambda: list(store.glob("*.status.json")))
            yield process
        finally:
            process.kill()


@pytest.fixture
def victim() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # where ``theirs`` is, for a hard link
        path = Path(folder) / "victim"
        path.write_bytes(b"precious")
        path.chmod(0o640)
        yield path


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root that must survive."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        assert process.poll() is None
        process.kill()


# -- predictable names -------------------------------------------------------------------------------


def _log(path: Path) -> None:
    handler = log_to_file(path, form="text", level="INFO", on_error=lambda _: None)
    try:
        logging.getLogger("eemtcleanupd").warning("text")
    finally:
        logging.getLogger("eemtcleanupd").removeHandler(handler)
        handler.close()


def _rotate(path: Path) -> None:
    log = path.with_name("cleanup.log")
    with log.open("wb") as file:
        file.truncate(10 << 20)
    _log(log)
    assert log.stat().st_size < 100


def _ballast(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    Ballast(path.parent, fd, path.name, 4096).allocate()
    os.close(fd)


def _socket(path: Path) -> None:
    open_address(f"unix:{path}", 0o666).close()


def _lock(path: Path) -> None:
    with file_lock(path, "run", "jobs.db", Holder(1, "h", "s")):
        pass


def _daemon_lock(path: Path) -> None:
    with daemon_lock(StoreAddress.of_file(path.with_name("jobs.db")), NOW):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "jobs.db.eemtcleanupd.status.json": lambda path: StatusFile(
        StoreAddress.of_file(path.with_name("jobs.db"))
    ).write(STATUS),
    "cleanup.log": _log,
    "cleanup.log.1": _rotate,
    "metrics.prom": lambda path: Prometheus().config_rejected(settings=MetricsConfig(textfile=path)),
    "tokens.json": lambda path: TokenFile(path).add("name", "read", NOW),
    "tokens.json.lock": lambda path: TokenFile(path.with_suffix("")).add("name", "read", NOW),
    "jobs.db.eemtcleanupd.lock": _lock,
    "jobs.db.eemtcleanupd.daemon.lock": _daemon_lock,
    "jobs.db.eemtcleanupd.ballast": _ballast,
    "api.sock": _socket,
    "cleanup_audit.log": lambda path: append_text(path, [AuditEntry(NOW, "ann", "hold", {})]),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("obstacle", ["link", "dangling link", "hard link", "fifo", "file"])
def test_what_lies_in_the_way_is_replaced_or_an_error(
    theirs: Path, victim: Path, name: str, obstacle: str
) -> None:
    path, created = theirs / name, victim.with_name("created")
    match obstacle:
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(created)
        case "hard link":
            path.hardlink_to(victim)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.write_bytes(b"theirs")
            path.chmod(0o666)
    if obstacle != "hard link":
        os.chown(path, UID, UID, follow_symlinks=False)
    with suppress(OSError, CleanupError), time_limit():
        WRITERS[name](path)
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mode & 0o777 == 0o640
    assert not created.exists()


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"cleanup.log.1", "api.sock"}))
def test_a_folder_that_became_a_link_is_not_entered(theirs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (theirs / "logs").symlink_to(tmp_path / "outside")
    os.chown(theirs / "logs", UID, UID, follow_symlinks=False)
    with suppress(OSError, CleanupError), time_limit():
        WRITERS[name](theirs / "logs" / name)
    assert os.listdir(tmp_path / "outside") in ([], [name] if "ballast" in name else [])


def test_kept_logs_stay_in_their_folder(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    job = tmp_path / "results" / "job"
    job.mkdir(parents=True)
    (job / "run.log").write_text("text")
    (theirs / "logs").symlink_to(tmp_path / "outside")
    os.chown(theirs / "logs", UID, UID, follow_symlinks=False)
    root = open_root(RootName.RESULTS, tmp_path / "results")
    with pytest.raises(PermissionError):
        keep_logs(root, "job", ["*.log"], theirs / "logs" / "jobs" / "job")
    root.close()
    assert os.listdir(tmp_path / "outside") == []


@pytest.mark.parametrize("obstacle", ["link", "fifo"])
def test_a_report_and_a_pidfile_do_not_follow(
    run_cli: RunCli, store: Path, theirs: Path, victim: Path, obstacle: str
) -> None:
    path = theirs / "file"
    if obstacle == "link":
        path.symlink_to(victim)
    else:
        os.mkfifo(path)
    os.chown(path, UID, UID, follow_symlinks=False)
    assert run_cli("report", "--output", path, cwd=store).returncode == 1
    assert run_cli("run", "--pidfile", path, cwd=store).returncode == 2
    assert victim.read_bytes() == b"precious"


def test_the_status_of_another_user_is_not_read(theirs: Path) -> None:
    address = StoreAddress.of_file(theirs / "jobs.db")
    StatusFile(address).write(STATUS)
    assert read_status(address) == STATUS
    os.chown(address.own_file("status.json"), UID, UID)
    assert read_status(address) is None


# -- signals -----------------------------------------------------------------------------------------


def _holder_text(pid: int) -> str:
    return json.dumps({"pid": pid, "host": os.uname().nodename, "since": "", "run": ""})


def test_a_lock_of_another_user_names_no_daemon(
    theirs: Path, bystander: subprocess.Popen[bytes], run_cli: RunCli
) -> None:
    address = StoreAddress.of_file(theirs / "jobs.db")
    lock = address.own_file("daemon.lock")

    def act() -> None:
        lock.write_text(_holder_text(bystander.pid))
        hold_flock(lock)

    with process_of(UID, act):
        with pytest.raises(StoreError):
            find_daemon(address)
        with pytest.raises(StoreError), signalled(address, signal.SIGTERM):
            pass
        for command in ("stop", "reload"):
            assert run_cli(command, "--db-path", theirs / "jobs.db").returncode != 0


@contextmanager
def _daemon(lock: Path, pid_in_file: int, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock of a daemon in a process of root; its lock file names any process."""
    code = (
        "import sys, fcntl\nfile = open(sys.argv[1], 'r+')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    os.close(open_own(lock, os.O_RDWR | os.O_CREAT, mode=0o600))
    lock.write_text(_holder_text(pid_in_file))
    with subprocess.Popen(
        [*command, sys.executable, "-I", "-c", code, lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_the_process_that_holds_the_lock_is_signalled_whatever_its_file_says(
    theirs: Path, bystander: subprocess.Popen[bytes]
) -> None:
    address = StoreAddress.of_file(theirs / "jobs.db")
    with _daemon(address.own_file("daemon.lock"), bystander.pid) as process:
        holder = find_daemon(address)
        assert holder is not None
        assert holder.pid == process.pid
        with signalled(address, signal.SIGTERM) as daemon:
            assert daemon is not None
            assert daemon.pid == process.pid
            assert process.wait(10) == -signal.SIGTERM
            until(daemon.has_exited)
        assert find_daemon(address) is None


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_process_of_another_namespace_is_not_signalled(
    theirs: Path, bystander: subprocess.Popen[bytes]
) -> None:
    address = StoreAddress.of_file(theirs / "jobs.db")
    command = ("unshare", "--pid", "--fork")
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("the kernel allows no new namespace")
    with _daemon(address.own_file("daemon.lock"), bystander.pid, *command) as process:
        with pytest.raises(CleanupError), signalled(address, signal.SIGTERM):
            pass
        assert process.poll() is None


def test_a_lock_that_a_dead_process_left_to_its_child_signals_nobody(theirs: Path) -> None:
    address = StoreAddress.of_file(theirs / "jobs.db")
    ready, go = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        lock = open_own(address.own_file("daemon.lock"), os.O_RDWR | os.O_CREAT, mode=0o600)
        hold_flock(Path(f"/proc/self/fd/{lock}"))
        if os.fork() == 0:
            os.close(go[1])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.waitpid(parent, 0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(CleanupError), signalled(address, signal.SIGTERM):
            pass
    finally:
        os.close(go[1])
        for descriptor in (*ready, go[0]):
            os.close(descriptor)


def test_files_alone_are_no_daemon(run_cli: RunCli, store: Path) -> None:
    address = StoreAddress.of_file(store / "jobs.db")
    StatusFile(address).write(STATUS)
    address.own_file("daemon.lock").write_text(_holder_text(os.getpid()))
    assert json.loads(run_cli("status", "--json", cwd=store).stdout)["running"] is False
    assert run_cli("stop", cwd=store).returncode == 0


# -- locks -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_other_user_can_open_a_lock(run_cli: RunCli, store: Path) -> None:
    (store / "jobs.db.eemtcleanupd.lock").touch(0o644)  # of an earlier version
    assert run_cli("clean", cwd=store).returncode in {0, 1}
    assert run_cli("token", "add", "me", "--scope", "read", cwd=store).returncode == 0
    with _running(store, "--pidfile", "daemon.pid"):
        locks = [*store.rglob("*.lock"), store / "daemon.pid"]
        assert len(locks) >= 4
        assert {lock.stat().st_mode & 0o077 for lock in locks} == {0}


def test_another_user_cannot_block_the_tokens(theirs: Path) -> None:
    os.chown(theirs, 0, 0)
    file = TokenFile(theirs / "tokens.json")
    file.add("name", "read", NOW)

    def act() -> None:
        hold_flock(theirs)
        with pytest.raises(PermissionError):
            hold_flock(theirs / "tokens.json.lock")

    with process_of(UID, act), time_limit():
        assert file.revoke("name")


# -- the configuration -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_daemon_survives_a_fifo_in_place_of_its_configuration(run_cli: RunCli, store: Path) -> None:
    with _running(store) as daemon:
        os.mkfifo(store / "fifo")
        (store / "fifo").rename(store / "cleanup_config.yaml")
        assert run_cli("reload", "--db-path", "jobs.db", "--timeout", "20", cwd=store).returncode == 2
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0


@pytest.mark.parametrize("command", ["check", "clean"])
def test_a_command_refuses_a_fifo_as_configuration(run_cli: RunCli, store: Path, command: str) -> None:
    (store / "cleanup_config.yaml").unlink()
    os.mkfifo(store / "cleanup_config.yaml")
    assert run_cli(command, cwd=store).returncode == 2
