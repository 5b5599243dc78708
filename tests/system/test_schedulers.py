"""The setup script: cleanups by a real cron, and by a real systemd of an unprivileged user."""

from __future__ import annotations

import re

import pytest

from tests.system.machine import PROJECT, Machine

SCRIPT = "/usr/src/eemtcleanupd/scripts/setup_cleanup_cron.sh"
DONE = "Cleanup completed successfully"
STORE = '/home/alice/it\'s 100% "EEMT" $HOME/web-interface'


class Alice:
    """An unprivileged user with a job store in her home, in which scripts are run."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __call__(self, script: str, *, check: bool = True) -> str:
        """Run a shell script as alice in her job store."""
        self.machine.sh(f"cat >/tmp/alice.sh <<'ALICE'\ncd {quoted(STORE)}\n{script}\nALICE")
        return self.machine.sh(
            "runuser -u alice -- env HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$(id -u alice)"
            " bash /tmp/alice.sh",
            check=check,
        )

    def cleaned(self) -> int:
        return int(self("sqlite3 jobs.db 'SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL'"))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.fixture
def alice(booted: Machine) -> Alice:
    booted.sh(
        f"""
        id alice >/dev/null 2>&1 || useradd --create-home alice
        rm -rf /home/alice/* && mkdir -p {quoted(STORE)} && rmdir {quoted(STORE)}
        chown -R alice: /home/alice
        eemtcleanupd demo {quoted(STORE)} --jobs 40 >/dev/null
        chown -R alice: /home/alice; crontab -u alice -r 2>/dev/null; true
        """
    )
    return Alice(booted)


def test_cron_cleans_every_minute_and_other_crontab_lines_are_kept(alice: Alice) -> None:
    # A hand-written line, as in the documentation, for a second job store.
    alice("cp -a . ~/plain && cp -r /usr/src/eemtcleanupd/scripts ~/plain/ && mkdir -p ~/plain/logs")
    document = (
        "* * * * * cd ~/plain && /usr/local/lib/eemtcleanupd/bin/python scripts/cleanup_jobs.py"
        " >> logs/cleanup.log 2>&1"
    )
    alice(f"printf '# mine\\n%s\\n* * * * * touch ~/other-\\%%-line' '{document}' | sed '$a\\' | crontab -")
    other = alice("crontab -l")
    shown = alice(f"{SCRIPT} install --schedule '* * * * *' && {SCRIPT} status")
    assert "cron: installed for alice" in shown
    assert f"crontab -e if they are obsolete:\n{document}" in shown
    assert "no cron daemon" not in shown
    both = f"grep -q '{DONE}' logs/cleanup.log && grep -q '{DONE}' ~/plain/logs/cleanup.log && echo yes"
    alice.machine.until(lambda: alice(both, check=False) == "yes", seconds=90)
    assert alice.cleaned() > 0
    alice(f"test -e ~/other-%-line; {SCRIPT} remove")
    assert alice("crontab -l") == other
    alice("crontab -r")
    # Each run is in the log once, although the line redirects the output there too.
    runs = alice("sqlite3 ~/plain/jobs.db 'SELECT count(*) FROM cleanup_runs WHERE finished_at IS NOT NULL'")
    assert alice(f"grep -c '{DONE}' ~/plain/logs/cleanup.log") == runs


def test_the_users_systemd_has_the_timer_and_cleans_on_request(alice: Alice) -> None:
    refused = alice(f"{SCRIPT} install-systemd; echo code $?", check=False)
    assert "code 3" in refused
    assert "loginctl enable-linger alice" in refused
    assert alice("ls -A ~/.config 2>/dev/null; true") == ""
    alice.machine.sh("loginctl enable-linger alice")
    alice.machine.until(lambda: "running" in alice("systemctl --user is-system-running", check=False))
    install = f"EEMT_SUCCESS_RETENTION_HOURS=100000 {SCRIPT} install-systemd --schedule '30 1,13 * * 1-5'"
    alice(install)
    assert "eemt-cleanup.timer is up to date" in alice(install)
    assert "active (waiting)" in alice("systemctl --user status eemt-cleanup.timer --no-pager")
    assert "01:30:00" in alice(f"{SCRIPT} status") or "13:30:00" in alice(f"{SCRIPT} status")
    alice("systemctl --user start eemt-cleanup.service")
    assert DONE in alice("cat logs/cleanup.log")
    retained = "SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL AND status = 'completed'"
    assert alice.cleaned() > 0
    assert alice(f'sqlite3 jobs.db "{retained}"') == "0"
    journal = alice.machine.sh("journalctl --sync; journalctl _UID=$(id -u alice) --no-pager")
    assert DONE in journal
    alice(f"{SCRIPT} remove-systemd")
    assert alice("systemctl --user list-timers --all --no-legend --no-pager") == ""
    assert "systemd: not installed" in alice(f"{SCRIPT} status", check=False)
    alice.machine.sh("loginctl disable-linger alice")


def test_the_documented_commands_work(alice: Alice) -> None:
    text = (PROJECT / "docs/how-to/cron-and-timers.md").read_text(encoding="utf-8")
    for command in re.findall(r"^# ([a-z].*)$", text, re.MULTILINE):
        alice.machine.sh(command)
    alice.machine.until(lambda: "running" in alice("systemctl --user is-system-running", check=False))
    alice("ln -s /usr/src/eemtcleanupd/scripts scripts")
    shown = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    assert len(shown) == 9
    for command in shown:
        alice(command)
    assert alice.cleaned() > 0
    assert "not installed" in alice("./scripts/setup_cleanup_cron.sh status", check=False)
    alice.machine.sh("loginctl disable-linger alice")
