"""The service under a real systemd: start, reload, stop, recovery, watchdog and sandbox."""

from __future__ import annotations

import json
from typing import Any

from tests.system.machine import Machine

STATUS = "/srv/eemt/jobs.db.eemtcleanupd.status.json"
# One job with very many files, so that its deletion takes some seconds.
BIG_JOB = """
python3 - <<'PYTHON'
import os, sqlite3
for folder in range(60):
    path = f"/srv/eemt/results/big/{folder}"
    os.makedirs(path)
    for number in range(3000):
        os.mknod(f"{path}/{number}")
db = sqlite3.connect("/srv/eemt/jobs.db")
columns = [row[1] for row in db.execute("PRAGMA table_info(jobs)")]
key = "id" if "id" in columns else "job_id"
db.execute(f"INSERT INTO jobs ({key}, workflow_type, status, parameters, dem_filename, created_at,"
           " completed_at) VALUES ('big', 'sol', 'completed', '{}', 'big.tif', '2025-12-31 23:00:00',"
           " '2026-01-01T00:00:00')")
db.commit()
PYTHON
chown -R eemt: /srv/eemt/results/big
find /srv/eemt/results/big -type d -exec touch -d yesterday {} +
"""


def show(machine: Machine, name: str) -> str:
    return machine.sh(f"systemctl show eemtcleanupd -P {name}")


def configure(machine: Machine, expression: str) -> None:
    machine.sh(f"sed -i '{expression}' /etc/eemtcleanupd/cleanup_config.yaml")


def status(machine: Machine) -> dict[str, Any]:
    """Return the daemon's status, empty while there is none."""
    text = machine.sh(f"cat {STATUS}", check=False)
    return dict(json.loads(text)) if text.startswith("{") else {}


def sql(machine: Machine, statement: str) -> str:
    return machine.sh(f'sqlite3 -cmd ".timeout 20000" /srv/eemt/jobs.db "{statement}"')


def limit_deletes(machine: Machine, per_second: int) -> None:
    """Let the daemon delete so many files per second; 0 means no limit."""
    configure(machine, f"s/max_deletes_per_second: .*/max_deletes_per_second: {per_second}/")


def start_big_run(machine: Machine) -> None:
    """Start a run that takes a minute, and return when the big job is partly deleted."""
    limit_deletes(machine, 3000)
    machine.sh(BIG_JOB)
    machine.sh("systemctl start eemtcleanupd && systemctl kill --kill-whom=main -s USR1 eemtcleanupd")
    machine.until(lambda: is_deleting(machine))


def is_deleting(machine: Machine) -> bool:
    """Tell whether the big job is partly deleted."""
    trash = "/srv/eemt/results/.eemtcleanupd-trash"
    name = machine.sh(f"find {trash} -path '*.deleting/*' -name 2999 -print -quit 2>/dev/null; true")
    return bool(name)


def assert_consistent(machine: Machine) -> None:
    """Assert that another run finishes the work, and that the data of each cleaned job is deleted."""
    machine.sh("runuser -u eemt -- eemtcleanupd clean --config /etc/eemtcleanupd/cleanup_config.yaml")
    assert sql(machine, "SELECT count(*) FROM cleanup_intents") == "0"
    assert machine.sh("find /srv/eemt/*/.eemtcleanupd-trash -mindepth 1 -not -name .root-id") == ""
    for job in sql(machine, "SELECT id FROM jobs WHERE data_cleaned_at IS NOT NULL").splitlines():
        assert machine.sh(f"ls -d /srv/eemt/results/'{job}' 2>/dev/null || true") == ""
    assert machine.sh("ls -d /srv/eemt/results/big 2>/dev/null || true") == ""


def test_systemd_shows_it_as_active_only_when_it_is_ready(machine: Machine) -> None:
    lock = "import sqlite3,time; c=sqlite3.connect('/srv/eemt/jobs.db'); c.execute('BEGIN EXCLUSIVE')"
    machine.sh(
        f"python3 -c \"{lock}; open('/tmp/locked', 'w'); time.sleep(100)\" >/dev/null 2>&1 & "
        " echo $! >/tmp/pid;"
        " while ! test -e /tmp/locked; do sleep 0.1; done;"
        " systemctl start --no-block eemtcleanupd"
    )
    machine.until(lambda: show(machine, "MainPID") != "0")
    assert show(machine, "ActiveState") == "activating"
    machine.sh("kill $(cat /tmp/pid); rm /tmp/locked /tmp/pid")
    machine.until(lambda: show(machine, "ActiveState") == "active")


def test_a_valid_file_is_reloaded_and_an_invalid_one_fails_the_reload(machine: Machine) -> None:
    machine.sh("systemctl start eemtcleanupd")
    configure(machine, "s/^    hours: 12$/    hours: 99/")
    machine.sh("systemctl reload eemtcleanupd")
    assert status(machine)["config_attempts"] >= 2  # the file watch can reload it as well
    assert status(machine)["config_error"] is None
    configure(machine, "s/^    hours: 99$/    hours: -99/")
    output = machine.sh("systemctl reload eemtcleanupd; echo code $?", check=False)
    assert "code 1" in output
    machine.until(lambda: "failed_jobs.hours" in show(machine, "StatusText"))
    machine.until(lambda: show(machine, "ActiveState") == "active")


def test_systemctl_status_shows_the_next_run_and_the_journal_has_priorities(machine: Machine) -> None:
    configure(machine, "/^schedule:/,/^paths:/ s/enabled: false/enabled: true/")
    machine.sh("systemctl start eemtcleanupd")
    # While a run is active, its progress is shown instead.
    machine.until(lambda: "Next run " in machine.sh("systemctl status eemtcleanupd --no-pager"))
    machine.sh(
        "rm /etc/eemtcleanupd/cleanup_config.yaml; systemctl kill --kill-whom=main -s HUP eemtcleanupd"
    )
    errors = "journalctl -u eemtcleanupd -p err -n 5 --no-pager"
    machine.until(lambda: "cleanup_config.yaml" in machine.sh(errors))


def test_killed_during_a_run_it_restarts_and_continues_the_run(machine: Machine) -> None:
    start_big_run(machine)
    machine.sh("systemctl kill --kill-whom=main -s KILL eemtcleanupd")
    limit_deletes(machine, 0)
    machine.until(lambda: show(machine, "NRestarts") == "1" and show(machine, "ActiveState") == "active")
    machine.until(lambda: sql(machine, "SELECT count(*) FROM cleanup_runs WHERE trigger = 'recovery'") == "1")
    machine.until(lambda: status(machine).get("state") == "idle")
    assert sql(machine, "SELECT count(*) FROM jobs WHERE id = 'big' AND data_cleaned_at IS NOT NULL") == "1"
    assert_consistent(machine)


def test_the_command_stop_is_not_followed_by_a_restart(machine: Machine) -> None:
    machine.sh("systemctl start eemtcleanupd")
    machine.sh("runuser -u eemt -- eemtcleanupd stop --config /etc/eemtcleanupd/cleanup_config.yaml")
    # Before a restart, the state is "activating".
    machine.until(lambda: show(machine, "ActiveState") == "inactive")
    assert (show(machine, "Result"), show(machine, "NRestarts")) == ("success", "0")


def test_a_hanging_daemon_is_killed_by_the_watchdog_and_restarted(machine: Machine) -> None:
    machine.sh(
        "mkdir -p /etc/systemd/system/eemtcleanupd.service.d;"
        " printf '[Service]\\nWatchdogSec=15\\nRestartSec=1\\nTimeoutAbortSec=2\\n'"
        " > /etc/systemd/system/eemtcleanupd.service.d/quick.conf;"
        " systemctl daemon-reload; systemctl start eemtcleanupd"
    )
    first = show(machine, "MainPID")
    machine.sh(f"kill -STOP {first}")
    machine.until(
        lambda: show(machine, "MainPID") not in {first, "0"} and show(machine, "ActiveState") == "active"
    )
    assert "Watchdog timeout" in machine.journal()


def test_it_can_write_only_to_the_job_store(machine: Machine) -> None:
    machine.sh("cp -a /srv/eemt /opt/elsewhere")
    configure(machine, "s#/srv/eemt/#/opt/elsewhere/#")
    before = machine.sh("find /opt/elsewhere | sort | md5sum")
    assert "code 1" in machine.sh("systemctl start eemtcleanupd; echo code $?", check=False)
    assert "Read-only file system" in machine.journal()
    assert machine.sh("find /opt/elsewhere | sort | md5sum") == before
    configure(machine, "s#/opt/elsewhere/#/srv/eemt/#")
    machine.sh("rm -rf /opt/elsewhere; systemctl stop eemtcleanupd; systemctl start eemtcleanupd")
    inside = f"nsenter --target={show(machine, 'MainPID')} --mount --user --preserve-credentials"
    for path in ("/opt/x", "/etc/x", "/usr/local/lib/x", "/home/x"):
        assert "code 1" in machine.sh(f"{inside} touch {path}; echo code $?", check=False)
    score = machine.sh("systemd-analyze security eemtcleanupd --no-pager | tail -1").split(": ")[1]
    assert float(score.split()[0]) <= 1.5


def outcome_of_a_run(machine: Machine) -> str:
    count = "SELECT count(*) FROM sqlite_master WHERE name = 'cleanup_runs'"
    runs = "SELECT count(*) FROM cleanup_runs WHERE finished_at IS NOT NULL"
    before = int(sql(machine, runs)) if sql(machine, count) == "1" else 0
    machine.sh("systemctl kill --kill-whom=main -s USR1 eemtcleanupd")
    machine.until(lambda: sql(machine, count) == "1" and int(sql(machine, runs)) > before)
    locks = "flock -n /srv/eemt/jobs.db.eemtcleanupd.lock true && echo free"
    machine.until(lambda: machine.sh(locks, check=False) == "free")  # it ends after its record
    return sql(machine, "SELECT outcome FROM cleanup_runs ORDER BY started_at DESC LIMIT 1")


def test_with_the_drop_in_it_deletes_files_of_root_and_uses_capabilities_for_that_only(
    machine: Machine,
) -> None:
    machine.sh("chown -R root: /srv/eemt/results/*; systemctl start eemtcleanupd")
    assert outcome_of_a_run(machine) == "errors"
    machine.sh(
        "mkdir -p /etc/systemd/system/eemtcleanupd.service.d;"
        " cp /usr/src/eemtcleanupd/packaging/systemd/root-files.conf.example"
        " /etc/systemd/system/eemtcleanupd.service.d/root-files.conf;"
        " systemctl daemon-reload; systemctl restart eemtcleanupd"
    )
    rights = machine.sh(f"cat /proc/{show(machine, 'MainPID')}/task/*/status | grep ^CapEff | sort -u")
    assert int(rights.split()[1], 16) == 0
    assert outcome_of_a_run(machine) == "success"
    assert_consistent(machine)


def test_a_scheduled_run_starts_by_itself_and_is_in_the_journal(machine: Machine) -> None:
    configure(
        machine, '/^schedule:/,/^paths:/ { s/enabled: false/enabled: true/; s/cron: .*/cron: "* * * * *"/ }'
    )
    machine.sh("journalctl --rotate && journalctl --vacuum-time=1s && systemctl start eemtcleanupd")
    machine.until(lambda: "Cleanup completed successfully" in machine.journal(), seconds=80)
    assert int(sql(machine, "SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL")) > 0
    assert sql(machine, "SELECT DISTINCT trigger FROM cleanup_runs") == "schedule"


def test_stopped_during_a_run_it_ends_in_time_and_leaves_a_consistent_store(machine: Machine) -> None:
    start_big_run(machine)
    machine.sh("systemctl stop eemtcleanupd", timeout=30)
    limit_deletes(machine, 0)
    assert show(machine, "Result") == "success"
    assert show(machine, "ExecMainStatus") == "0"
    assert sql(machine, "SELECT outcome FROM cleanup_runs ORDER BY rowid DESC LIMIT 1") == "interrupted"
    assert_consistent(machine)


def test_the_units_are_valid(machine: Machine) -> None:
    machine.sh("systemd-analyze verify --man=no /usr/local/lib/systemd/system/eemtcleanupd.service")
    machine.sh(
        "export XDG_RUNTIME_DIR=/tmp HOME=/root; systemd-analyze verify --man=no --user"
        " /usr/local/lib/systemd/user/eemt-cleanup.timer"
    )


def test_a_staged_install_refers_to_its_final_place_and_is_uninstalled_completely(machine: Machine) -> None:
    make = (
        "cd /usr/src/eemtcleanupd && PIP_NO_INDEX=1 PIP_FIND_LINKS=/usr/src/wheels"
        " make DESTDIR=/tmp/stage prefix=/usr"
    )
    machine.sh(f"rm -rf /tmp/stage; {make} install")
    assert machine.sh("grep -rlI /tmp/stage /tmp/stage || true") == ""
    assert "ExecStart=/usr/bin/eemtcleanupd run" in machine.sh(
        "cat /tmp/stage/usr/lib/systemd/system/eemtcleanupd.service"
    )
    assert machine.sh("readlink /tmp/stage/usr/bin/eemtcleanupd") == "/usr/lib/eemtcleanupd/bin/eemtcleanupd"
    conffile = "/tmp/stage/etc/eemtcleanupd/cleanup_config.yaml"
    machine.sh(f"echo '# ours' >>{conffile}; {make} install")
    assert machine.sh(f"tail -n 1 {conffile}; ls {conffile}.new") == f"# ours\n{conffile}.new"
    machine.sh(f"{make} uninstall")
    assert machine.sh("find /tmp/stage -not -type d") == conffile
    machine.sh(f"rm {conffile}; {make} install; {make} uninstall")
    assert machine.sh("find /tmp/stage -not -type d") == ""
