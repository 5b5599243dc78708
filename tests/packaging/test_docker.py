"""The image, and the service of the compose file, run as these say."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from tests.packaging.conftest import give_away
from tests.packaging.containers import EVERYWHERE, IMAGE, Podman, compose_options, web_options

DOCKER = Path(__file__).parents[2] / "packaging/docker"
DOCS = Path(__file__).parents[2] / "docs/how-to"
DONE = "Cleanup completed successfully"
containers = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.xdist_group("containers"),
    pytest.mark.timeout(900),
]


def compose() -> str:
    """The compose file as Compose reads it where no variable is set."""
    text = (DOCKER / "docker-compose.yml").read_text(encoding="utf-8")
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def cleaned(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs WHERE data_cleaned_at > ''").fetchone()[0])


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [linter, "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_as_its_specification_wants_it() -> None:
    read = compose_spec.PyCompose.from_yaml(compose())
    read.validate()
    assert set(read.services or ()) == {"eemt-web", "eemtcleanupd"}
    web, ours = ((read.services or {})[name] for name in ("eemt-web", "eemtcleanupd"))
    # Times without a zone: both must mean the same.
    zone = "TZ=UTC"
    assert zone in str(web.environment).replace("': '", "=")
    assert "EEMT_CLEANUP_ENABLED=false" in str(web.environment).replace("': '", "=")
    assert zone in str(ours.environment).replace("': '", "=")


@pytest.fixture
def laid(store: Path, tmp_path: Path) -> Path:
    """The folder of the compose file, with a job store in its `data`."""
    folder = tmp_path / "compose"
    shutil.copytree(DOCKER, folder)
    store.rename(folder / "data")
    (folder / "data/db").mkdir()
    (folder / "data/jobs.db").rename(folder / "data/db/jobs.db")
    give_away(folder / "data")
    return folder


class TestInContainers:
    pytestmark = containers

    def test_the_service_of_the_compose_file_lives_cleans_and_ends_in_order(
        self, podman: Podman, laid: Path
    ) -> None:
        service: dict[str, Any] = yaml.safe_load(compose())["services"]["eemtcleanupd"]
        daemon = podman.start("compose", *compose_options(service, laid))
        daemon.until(lambda: list((laid / "data/db").glob("*.status.json")))
        assert "Daemon started" in daemon.logs()
        podman("healthcheck", "run", "compose")
        lines = daemon.exec("cat", "/proc/1/status").splitlines()
        kernel = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert (kernel["CapEff"], kernel["CapBnd"]) == ("0" * 16, "0" * 16)
        assert (kernel["NoNewPrivs"], kernel["Seccomp"], kernel["Uid"].split()[0]) == ("1", "2", "1000")
        assert "Read-only file system" in daemon.exec("touch", "/app/x", check=False)
        assert "Read-only file system" in daemon.exec("touch", "/etc/eemtcleanupd/x", check=False)
        shown = daemon.exec("eemtcleanupd", "check")
        assert re.search(r"schedule\.cron +0 2 \* \* \* +.*EEMT_CLEANUP_SCHEDULE", shown), shown
        # An editor writes a new file and renames it.
        changed = laid / "etc/new.yaml"
        changed.write_text((laid / "etc/cleanup_config.yaml").read_text() + "performance: {batch_size: 7}\n")
        changed.rename(laid / "etc/cleanup_config.yaml")
        daemon.until(lambda: "is in force" in daemon.logs())
        # What the document calls by docker exec.
        said = daemon.exec("python", "scripts/cleanup_jobs.py")
        assert f"[INFO] {DONE}" in said
        assert cleaned(laid / "data/db/jobs.db") == 6
        assert DONE in (laid / "data/logs/cleanup.log").read_text()
        assert daemon.stop() == 0
        assert not list((laid / "data/db").glob("*.status.json"))

    def test_the_web_interface_and_the_daemon_of_the_compose_file_use_one_database(
        self, podman: Podman, tmp_path: Path
    ) -> None:
        """A stand-in has the paths of the application, whose database is in its /tmp."""
        folder = tmp_path / "compose"
        shutil.copytree(DOCKER, folder)
        for name in ("uploads", "results", "temp", "logs", "db"):
            (folder / "data" / name).mkdir(parents=True)
        (folder / "data/db/jobs.db").touch()
        give_away(folder / "data")
        services: dict[str, Any] = yaml.safe_load(compose())["services"]
        stand_in = Path(__file__).with_name("eemt_stand_in.py")
        web = podman.start("web", *web_options(services["eemt-web"], folder, stand_in))
        web.until(lambda: "Own cleanup: " in web.logs())
        assert "Own cleanup: disabled" in web.logs()
        daemon = podman.start("beside", *compose_options(services["eemtcleanupd"], folder))
        daemon.until(lambda: "Daemon started" in daemon.logs())
        for job in ("a", "b"):
            web.exec("python3", "/app/app.py", "submit", job)
        before = json.loads(daemon.exec("eemtcleanupd", "clean", "--dry-run", "--json"))
        assert before["database"]["path"] == "/app/db/jobs.db"
        assert before["database"]["jobs"] == 2
        assert DONE in daemon.exec("eemtcleanupd", "clean")
        assert web.exec("python3", "/app/app.py", "list") == "a b"
        assert cleaned(folder / "data/db/jobs.db") == 2
        assert not (folder / "data/results/a").exists()
        assert daemon.stop() == 0
        podman("rm", "--force", "--time=0", "web")

    def test_a_daemon_that_hangs_is_found_by_the_health_check(self, podman: Podman, store: Path) -> None:
        daemon = podman.start("hangs", f"--volume={store}:/app/store", "--workdir=/app/store", IMAGE)
        status = store / "jobs.db.eemtcleanupd.status.json"
        daemon.until(status.exists)
        podman("kill", "--signal=STOP", "hangs")
        status.write_text(re.sub(r'"heartbeat_at": "20\d\d', '"heartbeat_at": "2020', status.read_text()))
        assert "unhealthy" in podman("healthcheck", "run", "hangs", check=False)
        podman("kill", "--signal=CONT", "hangs")
        assert daemon.stop() == 0

    def test_the_documents_one_shot_with_the_database_mounted_alone_works_and_warns(
        self, podman: Podman, store: Path
    ) -> None:
        mounts = [f"--volume={store}/{each}:/app/{each}" for each in ("uploads", "results", "jobs.db")]
        # What the document's compose file and `docker run` say; the command as an entry point.
        said = podman.run(*mounts, "--entrypoint=python", IMAGE, "scripts/cleanup_jobs.py")
        assert "jobs.db is mounted without its folder" in said
        assert f"[INFO] {DONE}" in said
        assert cleaned(store / "jobs.db") == 6
        refused = podman.run(
            *mounts, "--read-only", "--read-only-tmpfs=false", "--tmpfs=/app/logs:mode=1777", IMAGE, "clean",
            check=False,
        )  # fmt: skip
        assert "mounted without its folder, and /app is not writable" in refused

    def test_another_owner_of_the_data_is_an_option_and_a_wrong_one_is_told(
        self, podman: Podman, store: Path
    ) -> None:
        at = [f"--volume={store}:/app/store", "--workdir=/app/store"]
        before = sorted(store.rglob("*"))
        refused = podman.run(*at, "--user=4711:4711", IMAGE, "clean", check=False)
        assert "/app/store/logs/cleanup.log" in refused
        assert "Traceback" not in refused
        assert sorted(store.rglob("*")) == before
        for path in (store, *store.rglob("*")):
            shutil.chown(path, 4711, 4711)
        assert DONE in podman.run(*at, "--user=4711:4711", IMAGE, "clean")

    def test_the_commands_of_the_document_work(self, podman: Podman, store: Path, tmp_path: Path) -> None:
        """All but the build, which the image comes from, by podman as `docker`."""
        shim = tmp_path / "bin/docker"
        shim.parent.mkdir()
        more = f'[ "$verb" != run ] || set -- {" ".join(EVERYWHERE)} "$@"'
        shim.write_text(f'#!/bin/sh\nverb=$1; shift\n{more}\nexec {podman.command} "$verb" "$@"\n')
        shim.chmod(0o755)
        shown = re.findall(r"^\$ (docker .*)$", (DOCS / "docker.md").read_text(), re.MULTILINE)
        assert shown.pop(0) == "docker build -f packaging/docker/Dockerfile -t eemtcleanupd ."
        assert len(shown) == 7
        for command in shown:
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=store,
                env={**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert cleaned(store / "jobs.db") == 6
