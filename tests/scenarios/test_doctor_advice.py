"""Each advice of doctor is followed to the letter: break, ask, follow, healthy, also for the service.

An advice has commands in backticks, some of them for root, and changes as ``Set KEY to VALUE.``
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.cleanup.conftest import JobStore
from tests.commands import CLIENT
from tests.hostile import (
    MEMBER,
    OWNER,
    commands as forked_commands,
    environment,
    give,
    needs_root,
    python,
    shared_folder,
)
from tests.ports import free_port

pytestmark = needs_root
Finding = dict[str, Any]


@dataclass
class Service:
    """A job store whose service works as OWNER, with its configuration of root."""

    store: JobStore
    config: Path
    stack: ExitStack
    env: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.store.path

    def execute(self, command: str | list[str], uid: int = 0) -> subprocess.CompletedProcess[str]:
        """Execute a command of the shell, or of the program, as a user."""
        if isinstance(command, list):
            command = f"eemtcleanupd {' '.join(command)} --config {self.config}"
        path = f"{self.config.parent}/bin:{os.environ['PATH']}"
        env = {**environment(), "PATH": path, **self.env}
        return forked_commands().run_shell_as(uid, command, env=env, cwd=Path("/"))

    def ask(self, uid: int = 0) -> list[Finding]:
        done = self.execute(["doctor", "--json"], uid)
        found: list[Finding] = json.loads(done.stdout)
        assert done.returncode == any(each["level"] == "problem" for each in found), done.stderr
        return found

    def problems(self, uid: int = 0) -> list[Finding]:
        return [each for each in self.ask(uid) if each["level"] == "problem"]

    def set(self, key: str, value: object) -> None:
        """Change the configuration."""
        document = json.loads(self.config.read_text())
        *blocks, name = key.split(".")
        block = document
        for each in blocks:
            block = block.setdefault(each, {})
        block[name] = value
        self.config.write_text(json.dumps(document))

    def follow(self, advice: str, uid: int = 0) -> None:
        """Do what an advice says, as the user who asked, except for the commands of root."""
        changes = re.findall(r"Set ([a-z_.]+) to (.+?)\.(?: |$)", advice)
        variables = re.findall(r"Remove (\w+) from the environment\.", advice)
        sentences = re.findall(r"(As root, run|Run) ((?:`[^`]+`(?:, then )?)+)", advice)
        assert changes or variables or sentences, advice
        for name in variables:
            del self.env[name]
        for key, value in changes:
            is_json = re.fullmatch(r"true|false|\d+", value) is not None
            self.set(key, json.loads(value) if is_json else value)
        for start, commands in sentences:
            for command in re.findall("`([^`]+)`", commands):
                done = self.execute(command, 0 if start.startswith("As") else uid)
                assert done.returncode == 0, (command, done.stdout, done.stderr)


@pytest.fixture
def service() -> Iterator[Service]:
    with shared_folder() as folder, ExitStack() as stack:
        store = JobStore(folder / "a store", now=datetime.now(UTC))
        (store.path / "backup").mkdir(mode=0o700)
        paths = {name: str(store.path / name) for name in ("uploads", "results", "temp", "logs")}
        file = folder / "cleanup_config.yaml"
        file.write_text(
            json.dumps(
                {
                    "paths": {"database": str(store.path / "jobs.db"), **paths},
                    "database": {"timezone": "UTC"},
                    "trash": {"grace_hours": 1},
                    "backup": {"enabled": True, "path": str(store.path / "backup")},
                    "safety": {"min_idle_minutes": 0, "ballast": "0"},
                }
            )
        )
        (folder / "bin").mkdir()
        (folder / "bin/eemtcleanupd").write_text(f"#!{python()} -IS\n{CLIENT}")
        (folder / "bin/eemtcleanupd").chmod(0o755)
        yield Service(store, file, stack)


def first_run(service: Service) -> None:
    service.store.job("due")
    give(service.path, OWNER)
    done = service.execute(["clean"], OWNER)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_root_finds_a_healthy_service_healthy(service: Service) -> None:
    first_run(service)
    assert service.problems() == service.problems(OWNER) == []


# -- owners and modes ------------------------------------------------------------------------------------


def logs_of_root(service: Service) -> None:
    os.chown(service.path / "logs", 0, 0)


def log_of_root(service: Service) -> None:
    os.chown(service.path / "logs/cleanup.log", 0, 0)
    (service.path / "logs/cleanup.log").chmod(0o600)


def logs_in_a_folder_of_root(service: Service) -> None:
    (service.config.parent / "var").mkdir()
    service.set("paths.logs", str(service.config.parent / "var/logs of it"))


def results_of_root(service: Service) -> None:
    os.chown(service.path / "results", 0, 0)
    (service.path / "results").chmod(0o755)


def folder_of_root_in_the_results(service: Service) -> None:
    (service.path / "results/x").mkdir(mode=0o755)


def trash_of_another_user(service: Service) -> None:
    give(service.path / "results/.eemtcleanupd-trash", MEMBER)


def trash_open_to_all(service: Service) -> None:
    (service.path / "temp/.eemtcleanupd-trash").chmod(0o777)


def backups_of_another_user(service: Service) -> None:
    os.chown(service.path / "backup", MEMBER, MEMBER)


def backups_open_to_all(service: Service) -> None:
    (service.path / "backup").chmod(0o777)


def database_of_root(service: Service) -> None:
    os.chown(service.path / "jobs.db", 0, 0)


def read_only_database(service: Service) -> None:
    (service.path / "jobs.db").chmod(0o444)


def folder_of_the_database_read_only(service: Service) -> None:
    service.path.chmod(0o555)


# -- the database and the configuration --------------------------------------------------------------------


def dry_run(service: Service) -> None:
    service.set("dry_run", True)


def dry_run_in_the_environment(service: Service) -> None:
    service.env["EEMT_CLEANUP_DRY_RUN"] = "true"


def run_as_root(service: Service) -> None:
    service.set("run_as", "root")


def database_elsewhere(service: Service) -> None:
    (service.path / "db").mkdir()
    give(service.path / "db", OWNER)
    (service.path / "jobs.db").rename(service.path / "db/jobs.db")


def damaged_database(service: Service) -> None:
    file = service.path / "jobs.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE INDEX lost ON jobs (status, completed_at)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'lost'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(file.read_bytes())
    data[(page - 1) * size + 8 : page * size] = b"\xff" * (size - 8)
    file.write_bytes(data)


def locked_database(service: Service) -> None:
    code = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
    code += "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); time.sleep(100)"
    held_by(service, [python(), "-c", code, str(service.path / "jobs.db")])


def held_by(service: Service, command: list[str]) -> None:
    """Start a process that holds something until the advice ends it."""
    holder = service.stack.enter_context(
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/", user=OWNER, group=65534, extra_groups=[])
    )
    service.stack.callback(holder.kill)
    Thread(target=holder.wait, daemon=True).start()  # a process that nobody waits for stays in /proc
    assert holder.stdout is not None
    assert holder.stdout.read(1)


def missing_column(service: Service) -> None:
    service.store.sql("ALTER TABLE jobs DROP COLUMN cleanup_summary")


def zone_too_far_east(service: Service) -> None:
    service.set("database.timezone", "Asia/Tokyo")
    service.store.job("b", "failed", days=1)
    give(service.path, OWNER)
    service.store.sql(
        "UPDATE jobs SET created_at = '2026-01-20 12:00:00', started_at = '2026-01-20T07:07:00'"
    )


def database_in_tmp(service: Service) -> None:
    file = Path(f"/tmp/{service.config.parent.name}.db")
    service.stack.callback(file.unlink, missing_ok=True)
    shutil.move(service.path / "jobs.db", file)
    service.set("paths.database", str(file))
    service.set("run_as", str(OWNER))


def web_interface_with_another_database(service: Service) -> None:
    (service.path / "web").mkdir()
    shutil.copy2(service.path / "jobs.db", service.path / "web/jobs.db")
    give(service.path / "web", OWNER)
    code = "import os, sys, time; os.chdir(sys.argv[1]); f = open('web/jobs.db');"
    code += " print(1, flush=True); time.sleep(100)"
    held_by(service, [python(), "-c", code, str(service.path)])


# -- the folders and the disk ------------------------------------------------------------------------------


def mount(service: Service, folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    unmount = ["umount", "--lazy", str(folder)]
    service.stack.callback(subprocess.run, unmount, check=False, capture_output=True)


def read_only_disk(service: Service) -> None:
    folder = service.path / "results"
    mount(service, folder, f"mode=755,uid={OWNER}")
    assert service.execute(["roots", "--accept"], OWNER).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def mount_in_the_results(service: Service) -> None:
    (service.path / "results/a folder").mkdir()
    give(service.path / "results/a folder", OWNER)
    mount(service, service.path / "results/a folder", f"mode=755,uid={OWNER}")


def full_disk(service: Service) -> None:
    assert service.execute(["trash", "purge", "--yes"], OWNER).returncode == 0
    mount(service, service.path / "results", f"size=10m,mode=755,uid={OWNER}")
    service.set("backup.enabled", False)
    assert service.execute(["roots", "--accept"], OWNER).returncode == 0
    service.store.job("big", files=1)
    (service.store.results("big") / "global/day_0.tif").write_bytes(b"x" * 10_200_000)
    give(service.store.results("big"), OWNER)


def deleted_file_that_is_open(service: Service) -> None:
    file = service.path / "results/big.tif"
    file.write_bytes(b"x" * 100_000)
    give(file, OWNER)
    held_by(service, ["tail", "-f", str(file)])
    file.unlink()


def orphan(service: Service) -> None:
    (service.path / "uploads/forgotten.tif").write_bytes(b"x" * 1000)


def used_budget(service: Service) -> None:
    service.store.job("young", days=1)
    give(service.path, OWNER)
    assert service.execute(["clean"], OWNER).returncode == 0
    service.set("capacity.max_bytes", 1000)


# -- the daemon, runs and notifiers ------------------------------------------------------------------------


def no_daemon(service: Service) -> None:
    service.set("schedule.enabled", True)
    stop_at_the_end(service)


def stop_at_the_end(service: Service) -> None:
    service.stack.callback(service.execute, ["stop"])


def schedule_that_is_off(service: Service) -> None:
    start_daemon(service)


def start_daemon(service: Service) -> None:
    stop_at_the_end(service)
    done = service.execute(["run", "--detach"])
    assert done.returncode == 0, done.stderr


def configuration_that_only_the_daemon_rejects(service: Service) -> None:
    service.set("schedule.enabled", True)
    start_daemon(service)
    service.env["HOOK"] = "http://127.0.0.1:9/"
    service.set("notifications", {"webhook": {"enabled": True, "url": "${HOOK}"}})
    service.execute(["reload"])


def no_runs(service: Service) -> None:
    for (table,) in service.store.sql(
        "SELECT name FROM sqlite_master WHERE name LIKE 'cleanup%' AND type = 'table'"
    ):
        service.store.sql(f"DROP TABLE {table}")
    for name in ("results", "uploads", "temp"):
        shutil.rmtree(service.path / name / ".eemtcleanupd-trash")


def run_that_failed(service: Service) -> None:
    service.store.sql("UPDATE cleanup_runs SET outcome = 'failed', error = 'The disk was slow.'")


def old_run(service: Service) -> None:
    service.store.sql(
        "UPDATE cleanup_runs SET started_at = datetime(started_at, '-3 days'),"
        " finished_at = datetime(finished_at, '-3 days')"
    )


def job_that_could_not_be_deleted(service: Service) -> None:
    service.set("trash.grace_hours", 0)
    service.set("backup.enabled", False)
    service.store.job("stuck", files=1)
    give(service.store.results("stuck"), OWNER)
    os.chown(service.store.results("stuck") / "global", 0, 0)
    assert service.execute(["clean"], OWNER).returncode == 1
    give(service.path / "results", OWNER)  # the cause


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def notifier_that_failed(service: Service) -> None:
    port = free_port()
    service.set(
        "notifications",
        {"webhook": {"enabled": True, "url": f"http://127.0.0.1:{port}/", "timeout_seconds": 2}},
    )
    service.execute(["clean"], OWNER)
    server = HTTPServer(("127.0.0.1", port), _Receiver)  # the cause
    service.stack.callback(server.server_close)
    service.stack.callback(server.shutdown)
    Thread(target=server.serve_forever, daemon=True).start()


CASES: list[tuple[str, int, Callable[[Service], None]]] = [
    ("configuration", 0, dry_run),
    ("configuration", 0, dry_run_in_the_environment),
    ("user", 0, run_as_root),
    ("database", OWNER, database_elsewhere),
    ("database", 0, damaged_database),
    ("database", 0, database_of_root),
    ("database", 0, read_only_database),
    ("database", OWNER, read_only_database),
    ("database", 0, folder_of_the_database_read_only),
    ("database", 0, locked_database),
    ("database", 0, missing_column),
    ("database", 0, zone_too_far_east),
    ("jobs", 0, database_in_tmp),
    ("jobs", 0, web_interface_with_another_database),
    ("folders", OWNER, results_of_root),
    ("folders", OWNER, folder_of_root_in_the_results),
    ("folders", 0, trash_of_another_user),
    ("folders", 0, trash_open_to_all),
    ("folders", OWNER, trash_open_to_all),
    ("folders", 0, read_only_disk),
    ("orphans", 0, orphan),
    ("disk", 0, full_disk),
    ("mounts", 0, mount_in_the_results),
    ("open files", 0, deleted_file_that_is_open),
    ("logs", 0, logs_of_root),
    ("logs", 0, log_of_root),
    ("logs", 0, logs_in_a_folder_of_root),
    ("capacity", 0, used_budget),
    ("schedule", 0, no_daemon),
    ("schedule", 0, schedule_that_is_off),
    ("schedule", 0, configuration_that_only_the_daemon_rejects),
    ("runs", 0, no_runs),
    ("runs", 0, run_that_failed),
    ("runs", 0, old_run),
    ("runs", 0, job_that_could_not_be_deleted),
    ("delivery", 0, notifier_that_failed),
    ("backup", 0, backups_of_another_user),
    ("backup", 0, backups_open_to_all),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "uid", "damage"), CASES, ids=lambda each: getattr(each, "__name__", str(each))
)
def test_an_advice_that_is_followed_to_the_letter_heals(
    service: Service, check: str, uid: int, damage: Callable[[Service], None]
) -> None:
    """The user who asks is root, except where only the service's user has the problem."""

    def ill() -> list[Finding]:
        return [each for each in service.ask(uid) if each["check"] == check and each["level"] != "ok"]

    first_run(service)
    damage(service)
    deadline = time.monotonic() + 60
    while not (found := ill()):
        assert time.monotonic() < deadline, "doctor finds nothing"
    followed: dict[tuple[str, str], float] = {}
    while found := ill():
        assert time.monotonic() < deadline, found
        for each in {(finding["message"], finding["advice"]) for finding in found}:
            # Again after a while: a message that failed is not sent at once.
            if time.monotonic() > followed.get(each, -5) + 5:
                service.follow(each[1], uid)
                followed[each] = time.monotonic()
    assert service.problems(uid) == []
    assert service.problems(OWNER) == []
    assert service.execute(["clean"], OWNER).returncode == 0


# -- what the owner of the store can plant ------------------------------------------------------------------


def link_in_place_of(service: Service, name: str, victim: Path) -> None:
    place = service.path / name
    if place.is_dir():
        place.rename(f"{place}.before")
    else:
        place.unlink()
    place.symlink_to(victim)
    os.chown(place, OWNER, OWNER, follow_symlinks=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("results/.eemtcleanupd-trash", True),
        ("temp/.eemtcleanupd-trash", True),
        ("backup", True),
        ("logs", True),
        ("logs/cleanup.log", False),
        ("logs/cleanup_audit.jsonl", False),
        ("jobs.db", False),
        ("results", True),
    ],
)
def test_no_advice_changes_what_a_link_of_the_owner_leads_to(
    service: Service, name: str, is_folder: bool
) -> None:
    first_run(service)
    victim = service.config.parent / "victim"
    secret = victim / "cleanup.log"
    victim.mkdir(mode=0o755)
    secret.write_text("secret")
    secret.chmod(0o600)
    before = [(path.stat().st_uid, path.stat().st_mode) for path in (victim, secret)]
    link_in_place_of(service, name, victim if is_folder else secret)
    for uid in (0, OWNER):
        done = service.execute(["doctor", "--json"], uid)
        for finding in json.loads(done.stdout) if done.stdout else []:
            with suppress(AssertionError):  # an advice in words, or one that fails
                service.follow(finding["advice"])
        assert [(path.stat().st_uid, path.stat().st_mode) for path in (victim, secret)] == before
    assert secret.read_text() == "secret"


@pytest.mark.slow
def test_a_service_of_another_user_is_asked_for_instead_of_its_files(service: Service) -> None:
    first_run(service)
    lock = service.path / "jobs.db.eemtcleanupd.daemon.lock"
    lock.touch()
    os.chown(lock, MEMBER, MEMBER)
    (problem,) = service.problems()
    assert problem["check"] == "user"
    (command,) = re.findall("`([^`]+)`", problem["advice"])
    assert command.startswith(f"eemtcleanupd doctor --run-as {MEMBER}")
    found = json.loads(service.execute(f"{command} --json").stdout)
    assert [each["level"] for each in found if each["check"] == "user"] == ["ok"]


@pytest.mark.slow
def test_an_advice_quotes_a_path(service: Service) -> None:
    first_run(service)
    logs_of_root(service)
    (problem,) = service.problems()
    assert f"'{service.path}/logs'" in problem["advice"]
