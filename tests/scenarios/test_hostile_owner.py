"""Who owns a job store gains no rights from a process of root, or of another user, that works on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.hostile import (
    GROUP,
    MEMBER,
    OWNER,
    as_user,
    command,
    environment,
    give,
    let_write,
    needs_root,
    python,
    shared_folder,
    time_limit,
)

pytestmark = [needs_root, pytest.mark.slow]

SUPER_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


@pytest.fixture
def store(folder: Path) -> JobStore:
    """A store of OWNER with one expired job, and one that is running."""
    store = JobStore(folder / "store")
    store.job("due", dem="due.tif")
    store.upload("due.tif")
    store.job("live", "running", days=None)
    give(store.path, OWNER)
    return store


def victim_of(folder: Path, uid: int = 0) -> Path:
    """A file that only its owner can delete: OWNER has no access to its folder."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    victim = private / "audit.jsonl"
    victim.write_text("what was done\n")
    give(private, uid)
    return victim


def plant_journal(database: Path, victim: Path) -> None:
    """Leave the journal of a killed transaction, which names the victim as its super-journal."""

    def transaction() -> None:
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("CREATE TABLE filler (content)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO filler VALUES (?)", [("x" * 3000,)] * 500)
        os.kill(os.getpid(), signal.SIGKILL)

    as_user(OWNER, transaction)
    name = os.fsencode(victim)
    checksum = sum(byte - 256 if byte > 127 else byte for byte in name) & 0xFFFFFFFF
    page_of_locks = (1 << 30) // 4096 + 1

    def append() -> None:
        with database.with_name(f"{database.name}-journal").open("r+b") as journal:
            size = journal.seek(0, os.SEEK_END)
            journal.seek((size + 511) // 512 * 512)
            journal.write(page_of_locks.to_bytes(4, "big") + name)
            journal.write(len(name).to_bytes(4, "big") + checksum.to_bytes(4, "big") + SUPER_JOURNAL_MAGIC)

    assert as_user(OWNER, append) == 0


COMMANDS = [
    ("status",),
    ("check",),
    ("doctor",),
    ("clean",),
    ("clean", "--dry-run"),
    ("history",),
    ("hold", "due"),
    ("trash", "list"),
    ("report",),
    ("reset", "--yes"),
]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_journal_of_the_owner_makes_root_delete_nothing(
    folder: Path, store: JobStore, args: tuple[str, ...]
) -> None:
    victim = victim_of(folder)
    plant_journal(store.path / "jobs.db", victim)
    done = command(*args, "--config", _config(folder, store), cwd=folder)
    assert done.returncode in {0, 1}, done.stderr
    assert victim.exists()


def test_a_fifo_that_a_journal_names_ends_a_command(folder: Path, store: JobStore) -> None:
    """SQLite waits for its writer, and ignores every signal."""
    fifo = folder / "store" / "fifo"
    assert as_user(OWNER, lambda: os.mkfifo(fifo)) == 0
    plant_journal(store.path / "jobs.db", fifo)
    with time_limit(60):
        done = command("status", "--config", _config(folder, store), cwd=folder)
    assert done.returncode == 3
    assert "jobs.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_journal_works_against_a_process_that_stays_root(folder: Path, store: JobStore) -> None:
    """The attack of these tests is a real one."""
    victim = victim_of(folder)
    plant_journal(store.path / "jobs.db", victim)
    done = command("status", "--config", _config(folder, store), "--run-as", "root", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stderr
    assert not victim.exists()


def test_a_journal_of_the_owner_makes_a_member_of_the_group_delete_nothing(
    folder: Path, store: JobStore
) -> None:
    victim = victim_of(folder, MEMBER)
    give(store.path, OWNER, GROUP)
    store.path.chmod(0o2775)
    (store.path / "jobs.db").chmod(0o664)
    plant_journal(store.path / "jobs.db", victim)
    config = _config(folder, store)
    done = command("status", "--config", config, cwd=folder, uid=MEMBER, groups=[GROUP])
    assert done.returncode == 3
    assert victim.exists()
    name = str(MEMBER)
    done = command("status", "--config", config, "--run-as", name, cwd=folder, uid=MEMBER, groups=[GROUP])
    assert done.returncode == 0, done.stderr


def test_a_database_of_root_in_a_folder_of_others_is_theirs(folder: Path, store: JobStore) -> None:
    victim = victim_of(folder)
    database = store.path / "jobs.db"
    plant_journal(database, victim)
    os.chown(database, 0, 0)
    command("status", "--config", _config(folder, store), cwd=folder)
    assert victim.exists()
    linked = store.path / "linked.db"
    linked.symlink_to(database)
    command("status", "--db-path", linked, cwd=folder)
    assert victim.exists()


def test_root_does_not_open_its_database_where_everybody_can_write(folder: Path, store: JobStore) -> None:
    victim = victim_of(folder)
    plant_journal(store.path / "jobs.db", victim)
    give(store.path, 0)
    store.path.chmod(0o1777)
    assert command("status", "--db-path", store.path / "jobs.db", cwd=folder).returncode == 3
    assert victim.exists()


def test_root_does_not_open_its_database_where_a_list_lets_another_user_write(
    folder: Path, store: JobStore
) -> None:
    victim = victim_of(folder)
    plant_journal(store.path / "jobs.db", victim)
    give(store.path, 0)
    let_write(store.path, OWNER)
    assert command("status", "--db-path", store.path / "jobs.db", cwd=folder).returncode == 3
    assert victim.exists()


def _config(folder: Path, store: JobStore, more: str = "") -> Path:
    file = folder / "etc" / "cleanup_config.yaml"
    file.parent.mkdir(exist_ok=True)
    paths = {name: str(store.path / name) for name in ("uploads", "results", "temp", "logs")}
    paths["database"] = str(store.path / "jobs.db")
    file.write_text(f"paths: {json.dumps(paths)}\nsafety: {{min_idle_minutes: 0}}\n{more}")
    return file


# -- configuration, plugins and secrets ----------------------------------------------------------------

EVIL = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"


def test_code_and_paths_in_the_current_folder_of_others_are_not_used(folder: Path, store: JobStore) -> None:
    (store.path / "evil.py").write_text(EVIL)
    file = store.path / "cleanup_config.yaml"
    file.write_text("plugins: [evil]\n")
    give(store.path, OWNER)
    for args in (["status"], ["check"], ["clean"]):
        assert command(*args, cwd=store.path).returncode == 2
    os.chown(file, 0, 0)  # the folder is still theirs
    assert command("check", cwd=store.path).returncode == 2
    assert command("check", "--config", file, cwd=store.path).returncode == 2  # theirs, so read as OWNER
    assert not (store.path / "executed").exists()
    command("check", "--config", file, cwd=store.path, uid=OWNER)
    assert (store.path / "executed").stat().st_uid == OWNER  # with no more rights than its author has


def test_a_picture_imports_nothing_from_the_current_folder(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    own = JobStore(folder / "own")
    own.job("due")
    config, theirs = _config(folder, own), folder / "theirs"
    assert command("clean", "--config", config, cwd=folder).returncode == 0
    theirs.mkdir()
    (theirs / "matplotlib.py").write_text(EVIL)
    (theirs / "matplotlibrc").write_text("axes.facecolor: 123456\n")
    give(theirs, OWNER)
    done = command("report", "--plot", folder / "trend.svg", "--config", config, cwd=theirs)
    assert done.returncode == 0, done.stderr
    assert not (theirs / "executed").exists()
    assert "#123456" not in (folder / "trend.svg").read_text()


def test_no_code_beside_a_configuration_of_others_reaches_the_capabilities(
    folder: Path, store: JobStore
) -> None:
    """An import of any name finds it there: a library's of what is not installed, and of an entry point."""
    config = _config(folder, store, "plugins: [good]\n")
    good = config.with_name("good.py")
    good.write_text(
        "from eemtcleanupd.hookspecs import hookimpl\n"
        "try:\n    import evil\nexcept ImportError:\n    pass\n"
        "@hookimpl\ndef veto_cleanup(job): pass\n"
    )
    evil = config.with_name("evil.py")
    evil.write_text(EVIL)
    os.chown(evil, OWNER, OWNER)
    assert command("check", "--config", config, cwd=folder).returncode == 0
    assert not config.with_name("executed").exists()
    config.write_text(config.read_text().replace("plugins: [good]\n", ""))
    entry_points = config.with_name("evil-1.dist-info") / "entry_points.txt"
    entry_points.parent.mkdir()
    entry_points.write_text("[eemtcleanupd]\nevil = evil\n")
    give(config.parent, OWNER)
    assert command("check", "--config", config, cwd=folder).returncode == 0
    assert not config.with_name("executed").exists()


@pytest.mark.parametrize("name", [".", "evil.py"])
def test_no_code_that_a_list_lets_its_user_write_reaches_the_capabilities(
    folder: Path, store: JobStore, name: str
) -> None:
    """A service manager can give the capabilities too (packaging/systemd/root-files.conf.example)."""
    config, executed = _config(folder, store, "plugins: [evil]\n"), store.path / "executed"
    config.with_name("evil.py").write_text(f"open({str(executed)!r}, 'w').close()\n")
    both = "+dac_override,+fowner"
    service = [
        *("setpriv", "--reuid", str(OWNER), "--regid", str(OWNER), "--clear-groups"),
        *("--inh-caps", both, "--ambient-caps", both),
        *(python(), "-m", "eemtcleanupd", "check", "--config", str(config)),
    ]
    subprocess.run(service, env=environment(), cwd=folder, check=False)
    executed.unlink()
    let_write(config.parent / name, OWNER)
    done = subprocess.run(service, env=environment(), cwd=folder, check=False)
    assert done.returncode == 2
    assert not executed.exists()


def test_a_plugin_beside_a_good_configuration_must_be_as_safe(folder: Path, store: JobStore) -> None:
    config = _config(folder, store, "plugins: [evil]\n")
    plugin = config.with_name("evil.py")
    plugin.write_text(EVIL)
    plugin.chmod(0o666)
    assert command("check", cwd=config.parent).returncode == 2
    plugin.chmod(0o644)
    os.chown(plugin, OWNER, OWNER)
    assert command("check", cwd=config.parent).returncode == 2
    assert not config.with_name("executed").exists()
    plugin.unlink()
    package = config.with_name("evil")
    package.mkdir()
    (package / "__init__.py").write_text(EVIL)
    give(package, OWNER)
    assert command("check", cwd=config.parent).returncode == 2
    assert not (package / "executed").exists()
    give(package, 0)
    (package / "__init__.py").write_text("import evil.part\n")
    part = package / "part.py"
    part.write_text(EVIL)
    os.chown(part, OWNER, OWNER)
    assert command("check", cwd=config.parent).returncode == 2
    assert not (package / "executed").exists()


@pytest.mark.parametrize("name", [".", "cleanup_config.yaml", "evil.py"])
def test_a_list_that_lets_another_user_write_counts(folder: Path, store: JobStore, name: str) -> None:
    config = _config(folder, store, "plugins: [evil]\n")
    config.with_name("evil.py").write_text(EVIL)
    let_write(config.parent / name, 0)
    command("check", cwd=config.parent)
    config.with_name("executed").unlink()
    let_write(config.parent / name, OWNER)
    assert command("check", cwd=config.parent).returncode == 2
    assert not config.with_name("executed").exists()


@pytest.mark.parametrize("mode", [0o666, 0o646])
def test_a_named_configuration_that_everybody_can_change_is_refused(
    folder: Path, store: JobStore, mode: int
) -> None:
    config = _config(folder, store)
    config.chmod(mode)
    assert command("check", "--config", config, cwd=folder).returncode == 2


def test_a_secret_of_others_is_not_used(folder: Path, store: JobStore) -> None:
    secret = folder / "etc" / "secret"
    email = f"{{enabled: true, recipients: [a@example.org], password_file: {secret}}}"
    config = _config(folder, store, f"notifications: {{email: {email}}}\n")
    secret.write_text("hidden\n")
    before = command("check", "--config", config, cwd=folder).stderr
    os.chown(secret, OWNER, OWNER)
    done = command("check", "--config", config, cwd=folder)
    assert done.returncode == 2
    assert str(secret) in done.stderr
    assert str(secret) not in before


def test_a_configuration_of_others_is_read_with_their_rights(folder: Path, store: JobStore) -> None:
    secret = victim_of(folder)
    recipients = "[a@example.org]"
    email = f"{{enabled: true, smtp_server: localhost, recipients: {recipients}, password_file: {secret}}}"
    config = _config(folder, store, f"notifications: {{email: {email}}}\n")
    assert command("check", "--config", config, cwd=folder).returncode == 0
    give(config.parent, OWNER)
    assert command("check", "--config", config, cwd=folder).returncode == 2
    assert command("check", "--config", config, "--run-as", "root", cwd=folder).returncode == 0
    (folder / "other").mkdir()
    give(folder / "other", MEMBER)
    moved = config.rename(folder / "other" / config.name)
    os.chown(moved, MEMBER, MEMBER)
    moved.write_text(moved.read_text().replace(f"notifications: {{email: {email}}}\n", ""))
    assert command("history", "--config", moved, cwd=folder).returncode == 3  # not MEMBER's store


# -- what a process can do ------------------------------------------------------------------------------


def _status(text: str) -> dict[str, list[str]]:
    return {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _assert_rights_of_owner(status: dict[str, list[str]]) -> None:
    assert status["Uid"] == [str(OWNER)] * 4
    assert "0" not in status["Gid"] + status["Groups"]
    assert int(status["CapEff"][0], 16) == 0
    assert int(status["CapPrm"][0], 16) & ~0b1010 == 0
    assert int(status["CapAmb"][0], 16) == 0


def test_files_of_root_in_the_roots_are_deleted_with_the_rights_of_the_owner(
    folder: Path, store: JobStore
) -> None:
    outside = victim_of(folder)
    (store.results("due") / "link").symlink_to(outside.parent)
    private = store.results("due") / "private"
    private.mkdir(mode=0o700)
    (private / "raster.tif").write_text("x")
    give(store.results("due"), 0)
    done = command("clean", "--config", _config(folder, store), "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cleaned_jobs"]["successful"] == 1
    assert not store.results("due").exists()
    assert outside.read_text() == "what was done\n"
    made = [path for path in store.path.rglob("*") if path.stat().st_uid == 0]
    assert made == []


@contextmanager
def daemon(folder: Path, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    status = folder / "store" / "jobs.db.eemtcleanupd.status.json"
    process = subprocess.Popen(
        [python(), "-m", "eemtcleanupd", "run", "--config", config], env=environment(), cwd=folder
    )
    try:
        deadline = time.monotonic() + 60
        while not status.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_no_process_of_the_daemon_keeps_the_rights_of_root(folder: Path, store: JobStore) -> None:
    tokens = folder / "etc" / "tokens.json"
    more = f"api: {{enabled: true, listen: 'unix:{store.path}/api.sock', tokens_file: {tokens}}}\n"
    with daemon(folder, _config(folder, store, more)) as process:
        assert _workers(process.pid)
        processes = [process.pid, *_children(process.pid)]
        for pid in processes:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                status = _status((thread / "status").read_text())
                _assert_rights_of_owner(status)
            group = int(status["Gid"][1])  # tracing needs the same group too, ptrace(2)
            assert as_user(OWNER, partial(os.open, f"/proc/{pid}/mem", os.O_RDONLY), group) != 0
            assert as_user(OWNER, Path(f"/proc/{pid}/environ").read_bytes, group) != 0


def test_the_http_process_has_no_capability_and_restores_no_folder_of_root(
    folder: Path, store: JobStore
) -> None:
    give(store.results("due"), 0)
    address = f"{store.path}/api.sock"
    config = _config(
        folder, store, f"trash: {{grace_hours: 24}}\napi: {{enabled: true, listen: 'unix:{address}'}}\n"
    )
    assert command("clean", "--config", config, cwd=folder).returncode == 0
    assert not store.results("due").exists()
    body = json.dumps({"job_id": "due"})
    with daemon(folder, config) as process:
        for pid in _workers(process.pid):
            status = _status(Path(f"/proc/{pid}/status").read_text())
            assert {status[name][0] for name in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            client.sendall(
                b"POST /api/cleanup/trash/restore HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode())
            )
            answer = client.makefile("rb").read()
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert [part["artifact"] for part in document["not_restored"]] == ["results/due/"]
    assert not store.results("due").exists()
    assert command("trash", "restore", "due", "--config", config, cwd=folder).returncode == 0
    assert store.results("due").stat().st_uid == 0


def _workers(pid: int) -> list[int]:
    """Return the processes of the HTTP interface of a daemon, which starts them after its status."""
    deadline = time.monotonic() + 60
    while not (found := [child for child in _children(pid) if b"web.worker" in _command_line(child)]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *_children(child)]
    return found


def test_run_as_names_the_user(folder: Path, store: JobStore) -> None:
    config = _config(folder, store)
    done = command("check", "--config", config, "--json", cwd=folder)
    assert json.loads(done.stdout)["user"] == str(OWNER)
    done = command("check", "--config", config, "--run-as", str(MEMBER), "--json", cwd=folder)
    assert json.loads(done.stdout)["user"] == str(MEMBER)
    assert command("check", "--config", config, "--run-as", "nobody-at-all", cwd=folder).returncode == 2
    assert command("check", "--config", config, "--run-as", "root", cwd=folder, uid=OWNER).returncode == 2


@pytest.mark.parametrize("missing", [(), ("results",), ("results", "uploads")])
def test_the_owner_of_the_roots_owns_a_store_on_a_server(
    folder: Path, store: JobStore, missing: tuple[str, ...]
) -> None:
    for root in missing:
        shutil.rmtree(store.path / root)
    config = _config(folder, store)
    config.write_text(config.read_text().replace(f"{store.path}/jobs.db", "postgresql://127.0.0.1:1/eemt"))
    done = command("check", "--config", config, "--json", cwd=folder)
    assert json.loads(done.stdout)["user"] == str(OWNER)


def test_the_owner_continues_what_runs_of_root_left(folder: Path, store: JobStore) -> None:
    config = _config(folder, store, "trash: {grace_hours: 24}\n")
    assert command("clean", "--config", config, "--run-as", "root", cwd=folder).returncode == 0
    with closing(sqlite3.connect(store.path / "jobs.db")) as connection:
        assert connection.execute("SELECT count(*) FROM cleanup_log").fetchone()[0] >= 1
    for left in (store.path / "logs", *store.path.glob("jobs.db.*")):
        give(left, OWNER)  # as `doctor` advises
    done = command("trash", "restore", "due", "--config", config, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (store.results("due") / "global").is_dir()
