"""What a process of root keeps, and the users that it meets, give the owner of a store no more rights."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trustme

from eemtcleanupd.deletion.trash import MARKER_NAME, marker_in
from eemtcleanupd.model import TRASH_NAME
from eemtcleanupd.privileges import User
from eemtcleanupd.store.owner import owner_of
from tests.cleanup.conftest import JobStore
from tests.hostile import (
    MEMBER,
    OWNER,
    PROGRAM_FOLDER,
    SITE_PACKAGES,
    as_user,
    command,
    environment,
    give,
    needs_root,
    python,
    shared_folder,
)

pytestmark = [needs_root, pytest.mark.slow]


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


@pytest.fixture
def store(folder: Path) -> JobStore:
    """A store of OWNER with one expired job."""
    store = JobStore(folder / "store")
    store.job("due", dem="due.tif")
    store.upload("due.tif")
    give(store.path, OWNER)
    return store


def config_of(folder: Path, store: JobStore, **blocks: object) -> Path:
    """A configuration in a folder, with these blocks."""
    paths = {name: str(store.path / name) for name in ("uploads", "results", "temp", "logs")}
    file = folder / "cleanup_config.yaml"
    file.write_text(json.dumps({"paths": {"database": str(store.path / "jobs.db"), **paths}, **blocks}))
    return file


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_link_of_the_owner_makes_no_folder_of_others_a_root(
    folder: Path, store: JobStore, mode: int
) -> None:
    victim = folder / "victim"
    (victim / "due").mkdir(parents=True)
    victim.chmod(mode)
    make_old(victim)

    def swap() -> None:
        (store.path / "results").rename(store.path / "moved")
        (store.path / "results").symlink_to(victim)

    assert as_user(OWNER, swap) == 0
    done = command("clean", "--config", config_of(folder, store), cwd=folder)
    assert [path.name for path in victim.iterdir()] == ["due"]
    assert done.returncode == 3


def make_old(place: Path) -> None:
    """Let a folder look unused for long, so that no run keeps it as one that is in use."""
    for path in (*place.rglob("*"), place):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def test_no_process_leaves_code_of_the_owner_in_the_program(folder: Path, store: JobStore) -> None:
    for number in range(600):  # enough for a helper process
        (store.results("due") / str(number)).touch()
    make_old(store.results("due"))
    give(store.path, OWNER)
    program = folder / "program"
    without_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROGRAM_FOLDER / "eemtcleanupd", program / "eemtcleanupd", ignore=without_cache)
    done = subprocess.run(
        [python(), "-m", "eemtcleanupd", "clean", "--config", config_of(folder, store)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{program}:{SITE_PACKAGES}"},
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0
    assert not store.results("due").exists()
    assert [path for path in program.rglob("*") if path.stat().st_uid != 0] == []


def test_the_owner_restores_an_orphan_of_another_user(store: JobStore) -> None:
    blocks = {"trash": {"grace_hours": 24}, "orphans": {"delete_after_hours": 0}}
    config_of(store.path, store, safety={"min_idle_minutes": 0}, **blocks)
    give(store.path, OWNER)
    orphan = store.upload("orphan.tif")
    assert command("clean", "--allow-orphans", cwd=store.path, uid=OWNER).returncode == 0
    assert not orphan.exists()
    done = command("trash", "restore", "uploads/orphan.tif", cwd=store.path, uid=OWNER)
    assert done.returncode == 0, done.stderr
    assert orphan.exists()


@pytest.mark.parametrize("place", ["an item", "the trash"])
def test_a_folder_of_root_in_place_of_an_item_or_the_trash_keeps_its_content(
    folder: Path, store: JobStore, place: str
) -> None:
    config = config_of(folder, store, trash={"grace_hours": 24})
    assert command("clean", "--config", config, cwd=folder).returncode == 0
    trash = store.path / "results" / TRASH_NAME
    (item,) = (path.parent for path in trash.glob("*/due"))
    planted = store.path / "results/project"
    secret = planted / item.name / "secret"
    (secret.parent / "due").mkdir(parents=True)
    secret.write_text("readable for all who can enter its folder")
    private = secret.parent if place == "an item" else planted
    private.chmod(0o700)

    def swap() -> None:
        if place == "an item":
            shutil.copy(trash / MARKER_NAME, planted)
        else:
            store.sql("DELETE FROM cleanup_roots WHERE name = 'results'")
            store.sql("UPDATE cleanup_intents SET state = 'open'")
        trash.rename(store.path / "moved")
        planted.rename(trash)

    if place == "an item":
        os.chown(planted, OWNER, OWNER)
        planted.chmod(0o700)
    assert as_user(OWNER, swap) == 0
    done = command("trash", "restore", "due", "--config", config, cwd=folder)
    assert done.returncode != 0
    assert (trash / item.name / secret.name).exists()


def test_a_folder_that_the_owner_cannot_move_is_not_backed_up_in_every_run(store: JobStore) -> None:
    config_of(store.path, store, backup={"enabled": True, "path": str(store.path / "backup")})
    give(store.path, OWNER)
    store.results("due").chmod(0o555)
    done = command("clean", "--json", cwd=store.path, uid=OWNER)
    assert [error["job_id"] for error in json.loads(done.stdout)["errors"]] == ["due"]
    assert store.results("due").exists()
    assert list(store.path.glob("backup/*")) == []
    store.results("due").chmod(0o755)
    assert command("clean", cwd=store.path, uid=OWNER).returncode == 0
    assert len(list(store.path.glob("backup/*"))) == 1


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM], ids=["old kernel", "old container runtime"])
def test_a_folder_of_root_can_move_where_faccessat2_is_missing(
    folder: Path, store: JobStore, code: int
) -> None:
    give(store.path, OWNER)
    os.chown(store.results("due"), 0, 0)
    done = subprocess.run(
        [python(), "-m", "eemtcleanupd", "clean", "--config", config_of(folder, store)],
        env=environment(),
        cwd=folder,
        check=False,
        preexec_fn=partial(forbid, 439, code),
    )
    assert (done.returncode, store.cleaned()) == (0, {"due"})


def forbid(number: int, code: int) -> None:
    """Let a system call of this process and its children fail (seccomp(2), linux/filter.h)."""
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | code), (0x06, 0, 0, 0x7FFF0000)]
    code_of = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code_of)))
    prctl, no_new_privileges, seccomp, by_filter = ctypes.CDLL(None).prctl, 38, 22, 2
    assert prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert prctl(seccomp, by_filter, program, 0, 0) == 0


def test_a_file_that_the_owner_cannot_move_is_not_backed_up_in_every_run(store: JobStore) -> None:
    config_of(store.path, store, backup={"enabled": True, "path": str(store.path / "backup")})
    upload = store.path / "uploads/due.tif"
    give(store.path, OWNER)
    os.chown(upload.parent, 0, 0)
    upload.parent.chmod(0o1777)  # only the owner of a file can move it
    os.chown(upload, MEMBER, MEMBER)
    done = command("clean", "--json", cwd=store.path, uid=OWNER)
    assert [error["job_id"] for error in json.loads(done.stdout)["errors"]] == ["due"]
    assert list(store.path.glob("backup/*")) == []
    os.chown(upload, OWNER, OWNER)
    assert command("clean", cwd=store.path, uid=OWNER).returncode == 0
    assert len(list(store.path.glob("backup/*"))) == 1


def test_what_the_owner_cannot_put_back_stops_no_run(store: JobStore) -> None:
    config_of(store.path, store, trash={"grace_hours": 24})
    give(store.path, OWNER)
    assert command("clean", cwd=store.path, uid=OWNER).returncode == 0
    (item,) = (store.path / "results").glob(".*/*/due")
    item.chmod(0o555)  # a folder that moves gets another entry "..", as one of root does
    done = command("trash", "restore", "due", cwd=store.path, uid=OWNER)
    assert (done.returncode, store.cleaned()) == (1, set())
    store.job("other")
    give(store.results("other"), OWNER)
    done = command("clean", "--json", cwd=store.path, uid=OWNER)
    assert done.returncode == 1, done.stderr
    assert [error["job_id"] for error in json.loads(done.stdout)["errors"]] == ["due"]
    assert store.cleaned() == {"other"}
    assert item.exists()
    item.chmod(0o755)
    assert command("clean", cwd=store.path, uid=OWNER).returncode == 0
    assert store.results("due").exists()


@pytest.mark.parametrize("namespace", [("unshare", "--map-root-user"), ("unshare", "--map-current-user")])
def test_a_user_namespace_that_knows_one_user_works(store: JobStore, namespace: tuple[str, ...]) -> None:
    config = config_of(store.path, store)
    give(store.path, OWNER)
    done = subprocess.run(
        [*namespace, python(), "-m", "eemtcleanupd", "clean"],
        env=environment(),
        user=OWNER,
        group=OWNER,
        extra_groups=[],
        cwd=config.parent,
        capture_output=True,
        check=False,
    )
    if b"unshare failed" in done.stderr:
        pytest.skip("this machine has no user namespaces for ordinary users")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_root_that_cannot_become_the_owner_gets_an_error(folder: Path, store: JobStore) -> None:
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set", "-setuid,-setgid", python(), "-m", "eemtcleanupd"),
            *("status", "--config", config_of(folder, store)),
        ],
        env=environment(),
        cwd=folder,
        check=False,
    )
    assert done.returncode == 2


def test_a_user_without_a_name_works_with_a_umask_for_its_group(store: JobStore) -> None:
    config = config_of(store.path, store)
    give(store.path, OWNER)
    for place, mode in ((config, 0o664), (store.path, 0o775), (store.path / "jobs.db", 0o664)):
        place.chmod(mode)
    assert command("status", cwd=store.path, uid=OWNER).returncode == 0


def test_a_log_is_opened_with_the_rights_of_the_owner(folder: Path) -> None:
    victim = folder / "victim"
    victim.mkdir()
    program = f"""
import logging
from pathlib import Path
from threading import Thread
from eemtcleanupd import privileges
from eemtcleanupd.logs import log_to_file
privileges.become(privileges.User({OWNER}, {OWNER}, "owner", ()))
handler = log_to_file(Path("{folder}/real/cleanup.log"), form="text", level="INFO")
Path("{folder}/real").rename("{folder}/moved")
Path("{folder}/real").symlink_to("{victim}")
handler.maxBytes = 1
@privileges.with_file_access
def delete():
    logging.getLogger("eemtcleanupd").warning("as a thread that deletes")
    Path("{victim}/raised").touch()
thread = Thread(target=delete)
thread.start()
thread.join()
"""
    folder.chmod(0o1777)
    done = subprocess.run([python(), "-c", program], env=environment(), cwd=folder, check=False)
    assert done.returncode == 0
    assert [path.name for path in victim.iterdir()] == ["raised"]


def test_a_thread_that_deletes_has_capabilities_only_while_it_deletes(folder: Path) -> None:
    (folder / "root").mkdir()
    os.chown(folder / "root", OWNER, OWNER)
    program = f"""
import re, time
from pathlib import Path
from threading import Barrier
from eemtcleanupd import privileges
from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.pool import DeletionPool
def effective(task="thread-self"):
    return re.search("CapEff:.([0-9a-f]+)", Path("/proc", task, "status").read_text())[1]
privileges.become(privileges.User({OWNER}, {OWNER}, "owner", ()))
with DeletionPool(2, StopFlag()) as pool:
    seen, together = [], Barrier(3)
    def task():
        seen.append(effective())
        if len(seen) == 1:
            pool.submit(task)  # starts a thread from one that has them
        together.wait(10)
    pool.submit(task)
    together.wait(10)
    assert [int(found, 16) for found in seen] == [10, 10], seen
    deadline = time.monotonic() + 10
    while any(int(effective(f"self/task/{{task.name}}"), 16) for task in Path("/proc/self/task").iterdir()):
        assert time.monotonic() < deadline
"""
    done = subprocess.run([python(), "-c", program], env=environment(), cwd=folder, check=False)
    assert done.returncode == 0


def test_stop_finds_the_daemon_by_its_database_as_by_its_configuration(folder: Path, store: JobStore) -> None:
    status = Path(f"{store.path}/jobs.db.eemtcleanupd.status.json")
    daemon = subprocess.Popen(
        [python(), "-m", "eemtcleanupd", "run", "--config", config_of(folder, store)],
        env=environment(),
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not status.exists():
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = command("stop", "--db-path", store.path / "jobs.db", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert daemon.wait(10) == 0
    finally:
        daemon.kill()
        daemon.wait(10)


def test_no_answer_of_a_cluster_reaches_the_capabilities(folder: Path, store: JobStore) -> None:
    """Answers are pickles, and the workers of the cluster run as the owner."""
    pytest.importorskip("distributed")
    authority = trustme.CA()
    identity = authority.issue_cert("localhost")
    files = {name: str(folder / f"{name}.pem") for name in ("tls_ca_file", "tls_cert_file", "tls_key_file")}
    authority.cert_pem.write_to_path(files["tls_ca_file"])
    identity.cert_chain_pems[0].write_to_path(files["tls_cert_file"])
    identity.private_key_pem.write_to_path(files["tls_key_file"])
    os.chown(files["tls_key_file"], OWNER, OWNER)
    make_old(store.results("due"))
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        scheduler.setblocking(False)
        config = config_of(folder, store)
        dask = {"scheduler": f"tls://127.0.0.1:{scheduler.getsockname()[1]}", **files}
        settings = json.loads(config.read_text()) | {"performance": {"executor": "dask", "dask": dask}}
        config.write_text(json.dumps(settings))
        assert command("clean", "--config", config, cwd=folder).returncode == 0
        with pytest.raises(BlockingIOError):
            scheduler.accept()
    assert not store.results("due").exists()


@pytest.mark.parametrize("parameter", ["sslkey=/their/library.so:key", "service=theirs", "conninfo=port%3D1"])
def test_no_library_of_the_owner_reaches_the_capabilities(
    folder: Path, store: JobStore, parameter: str
) -> None:
    """The driver of PostgreSQL loads an engine of OpenSSL from any path."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        config = config_of(folder, store)
        settings = json.loads(config.read_text())
        settings["paths"]["database"] = f"postgresql://127.0.0.1:{server.getsockname()[1]}/eemt?{parameter}"
        config.write_text(json.dumps(settings))
        give(config, OWNER)
        done = command("status", "--config", config, cwd=folder)
        assert done.returncode == 3
        assert "sslkey" in done.stderr
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_demo_in_a_folder_of_others_is_theirs(folder: Path, store: JobStore) -> None:
    done = command("demo", store.path / "demo", "--jobs", "40", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path for path in (store.path / "demo").rglob("*") if path.lstat().st_uid != OWNER] == []


def test_a_link_of_others_between_two_links_of_root_counts(folder: Path, store: JobStore) -> None:
    good = folder / "good"
    good.mkdir()
    config_of(good, store)
    (store.path / "current").symlink_to(good)
    os.chown(store.path / "current", OWNER, OWNER, follow_symlinks=False)
    place = folder / "etc"
    place.mkdir()
    (place / "cleanup_config.yaml").symlink_to(store.path / "current/cleanup_config.yaml")
    assert command("check", cwd=place).returncode == 2
    assert owner_of(place / "cleanup_config.yaml") == User.of(OWNER)


def test_a_marker_is_not_read_through_a_hard_link(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("secret")
    os.link(secret, folder / MARKER_NAME)  # where protected_hardlinks is off
    folder_fd = os.open(folder, os.O_RDONLY)
    assert marker_in(folder_fd) is None
    secret.unlink()
    assert marker_in(folder_fd) == "secret"
    os.close(folder_fd)
