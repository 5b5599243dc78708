"""scripts/setup_cleanup_cron.sh: changes of the crontab, and refused input.

The crontab program here is a fake that keeps one file; tests/system/test_schedulers.py uses the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
from cronsim import CronSim

from tests.conftest import Aged
from tests.hostile import needs_root
from tests.requirements import needs

SCRIPT = Path(__file__).parents[1] / "scripts/setup_cleanup_cron.sh"
MARKER = "# eemt-cleanup: managed by setup_cleanup_cron.sh"
# Like Debian's: `-l` fails without a crontab, and `-` accepts only complete lines.
CRONTAB = """#!/bin/sh
case $1 in
  -l) [ -z "$CRONTAB_FAILS" ] || { echo "$CRONTAB_FAILS" >&2; exit 1; }
      cat "$CRONTAB_FILE" 2>/dev/null || { echo "no crontab for $LOGNAME" >&2; exit 1; } ;;
  -r) rm "$CRONTAB_FILE" ;;
  -) cat >"$CRONTAB_FILE.new"
     [ -z "$(tail -c 1 "$CRONTAB_FILE.new")" ] && mv "$CRONTAB_FILE.new" "$CRONTAB_FILE" ;;
esac
"""
FOREIGN = b"# mine\nMAILTO=me\n\n@daily echo \xff 50\\% # eemt-cleanup\n\n0 1 * * * backup"
Setup = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(sample_store: Path, aged: Aged) -> Path:
    """A job store whose path needs quotes in the shell and a backslash in a crontab."""
    place = sample_store.with_name("it's 100% EEMT & more")
    return aged(sample_store, 10).rename(place)


@pytest.fixture
def setup(tmp_path: Path, store: Path) -> Setup:
    """Run the script in the store with a fake crontab."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "crontab").write_text(CRONTAB)
    (programs / "crontab").chmod(0o755)

    def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "LOGNAME": "alice",
            "CRONTAB_FILE": str(tmp_path / "crontab"),
            **variables,
        }
        more = ["--python", sys.executable] if str(arguments[0]).startswith("install") else []
        return subprocess.run(
            [SCRIPT, arguments[0], *more, *arguments[1:]],
            cwd=store,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_install_adds_one_working_line_and_remove_deletes_it(
    tmp_path: Path, store: Path, setup: Setup
) -> None:
    crontab = tmp_path / "crontab"
    assert setup("status").returncode == 1
    done = setup("install")
    assert done.returncode == 0, done.stderr
    first = crontab.read_text()
    assert setup("install").returncode == 0
    assert crontab.read_text() == first
    assert first.count("\n") == 1
    shown = setup("status")
    assert shown.returncode == 0
    assert first in shown.stdout
    # cron runs the part after the five fields, without the backslashes (crontab(5)).
    assert "100\\%" in first
    command = first.split(maxsplit=5)[5].replace("\\%", "%")
    subprocess.run(["/bin/sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, check=True, timeout=60)
    assert os.listdir(store / "results") == [".eemtcleanupd-trash"]
    lines = (store / "logs/cleanup.log").read_text().splitlines()
    assert sum("Cleanup completed successfully" in line for line in lines) == 1
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+: ", line) for line in lines)
    assert setup("remove").returncode == 0
    assert not crontab.exists()
    assert setup("remove").returncode == 0


def test_nothing_is_imported_from_the_folder_of_the_store(store: Path, setup: Setup) -> None:
    for name in ("eemtcleanupd", "click"):
        (store / f"{name}.py").write_text(f"open({str(store / 'executed')!r}, 'w').close()\n")
    done = setup("install")
    assert not (store / "executed").exists()
    assert done.returncode == 0, done.stderr


@needs_root
@pytest.mark.parametrize("place", [".", "..", "logs", "logs/cleanup.log"])
def test_no_line_appends_to_a_log_that_another_user_can_replace(
    tmp_path: Path, store: Path, setup: Setup, place: str
) -> None:
    log = store / "logs/cleanup.log"
    log.parent.mkdir()
    log.symlink_to(tmp_path / "victim")
    (tmp_path / "victim").touch()
    os.chown(store / place, 4711, 4711)
    done = setup("install")
    assert done.returncode == 2
    assert "as the owner" in done.stderr
    assert not (tmp_path / "crontab").exists()


@needs_root
def test_no_line_appends_to_a_log_in_a_folder_that_everybody_can_write(
    tmp_path: Path, store: Path, setup: Setup
) -> None:
    store.chmod(0o777)
    assert setup("install").returncode == 2
    assert not (tmp_path / "crontab").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("setup")
def test_the_script_works_through_a_link_with_sh(tmp_path: Path, store: Path) -> None:
    link = tmp_path / "bin/cron-setup"
    link.symlink_to(SCRIPT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        ["sh", link, "install", "--directory", store, "--python", sys.executable],
        cwd=elsewhere,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "CRONTAB_FILE": str(tmp_path / "crontab")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "owner" not in done.stdout
    assert str(SCRIPT.with_name("cleanup_jobs.py")) in (tmp_path / "crontab").read_text()


@pytest.mark.slow
def test_other_crontab_lines_are_not_changed(tmp_path: Path, setup: Setup) -> None:
    crontab = tmp_path / "crontab"
    crontab.write_bytes(FOREIGN)  # a similar comment, bytes that are not UTF-8, no newline at the end
    setup("install", "--schedule", "*/5 1-3 * * mon,fri")
    assert crontab.read_bytes().startswith(FOREIGN + b"\n*/5 1-3 * * mon,fri cd ")
    changed = setup("install", EEMT_CLEANUP_SCHEDULE='"@daily"')
    assert crontab.read_bytes().startswith(FOREIGN + b"\n@daily cd ")
    assert "*/5 1-3 * * mon,fri cd " in changed.stdout
    assert crontab.read_bytes().count(MARKER.encode()) == 1
    setup("remove")
    assert crontab.read_bytes() == FOREIGN + b"\n"


@pytest.mark.slow
def test_install_shows_other_lines_that_clean(tmp_path: Path, setup: Setup) -> None:
    old = "0 2 * * * cd /eemt && /usr/bin/python3 scripts/cleanup_jobs.py >> logs/cleanup.log 2>&1\n"
    (tmp_path / "crontab").write_text(f"#{old}{old}")
    for action in ("status", "install", "status", "remove", "remove"):
        assert setup(action).stdout.count(old) == 1, action


def test_a_line_whose_log_folder_is_missing_is_named(tmp_path: Path, store: Path, setup: Setup) -> None:
    """The shell opens the log before the script starts."""
    place = tmp_path / "eemt"
    place.mkdir()
    line = f"0 2 * * * cd {place} && /usr/bin/python3 scripts/cleanup_jobs.py >> logs/cleanup.log 2>&1\n"
    (tmp_path / "crontab").write_text(line)
    assert f"mkdir {place}/logs" in setup("status").stdout
    (place / "logs").mkdir()
    assert "mkdir" not in setup("status").stdout


def test_status_names_a_timer_of_other_origin(tmp_path: Path, setup: Setup) -> None:
    """The script of the EEMT repository writes units of the same name, which run its own cleanup."""
    units = tmp_path / ".config/systemd/user"
    units.mkdir(parents=True)
    command = "ExecStart=/usr/bin/python3 /eemt/web-interface/cleanup_jobs.py"
    (units / "eemt-cleanup.timer").write_text("[Timer]\nOnCalendar=daily\n")
    (units / "eemt-cleanup.service").write_text(f"[Service]\n{command}\n")
    done = setup("status")
    assert done.returncode == 1
    assert command in done.stdout.splitlines()
    (units / "eemt-cleanup.timer").write_text(f"{MARKER}\n[Timer]\nOnCalendar=daily\n")
    done = setup("status")
    assert done.returncode == 0
    assert command not in done.stdout.splitlines()


@pytest.mark.slow
def test_the_installed_line_works_without_its_log_folder(tmp_path: Path, store: Path, setup: Setup) -> None:
    assert setup("install").returncode == 0
    (store / "logs").rmdir()
    command = (tmp_path / "crontab").read_text().split(maxsplit=5)[5].replace("\\%", "%")
    subprocess.run(["/bin/sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, check=True, timeout=60)
    assert "Cleanup completed successfully" in (store / "logs/cleanup.log").read_text()


@pytest.mark.slow
def test_environment_variables_and_configuration_are_installed(
    tmp_path: Path, store: Path, setup: Setup
) -> None:
    """Without the variables cron would use the default retention and delete data too early."""
    (store / "my config.yaml").write_text("performance: {batch_size: 7}\n")
    (store / "uploads").rename(store / "a 'b'")
    variables = {"EEMT_SUCCESS_RETENTION_HOURS": "336", "EEMT_UPLOADS_DIR": "a 'b'", "EEMT_WEB_SECRET": "x"}
    done = setup("install", "--config", "my config.yaml", **variables)
    assert done.returncode == 0, done.stderr
    line = (tmp_path / "crontab").read_text()
    assert " EEMT_SUCCESS_RETENTION_HOURS=336 EEMT_UPLOADS_DIR='a '\\''b'\\''' " in line
    assert "EEMT_WEB_SECRET" not in line
    assert "my config.yaml' >> logs/cleanup.log" in line


@pytest.mark.fast_parameters(4)
@pytest.mark.parametrize(
    ("arguments", "variables", "code", "noun"),
    [
        (["install", "--schedule", "0 2 * *"], {}, 2, "--schedule '0 2 * *'"),
        (["install", "--schedule", "0 2 * * *\n* * * * * rm x"], {}, 2, "--schedule"),
        (["install", "--schedule"], {}, 2, "--schedule"),
        (["install", "--directory", "nowhere"], {}, 2, "nowhere"),
        (["install", "--directory", "/usr"], {}, 3, "/usr"),
        (["install", "--config", "none.yaml"], {}, 2, "--config none.yaml"),
        (["install", "--python", "/bin/true\\"], {}, 2, "--python /bin/true"),
        (["install"], {"EEMT_UPLOADS_DIR": "a\nb"}, 2, "EEMT_UPLOADS_DIR"),
        (["install"], {"EEMT_FAILED_RETENTION_HOURS": "soon"}, 3, "EEMT_FAILED_RETENTION_HOURS"),
        (["install"], {"CRONTAB_FAILS": "You (alice) are not allowed"}, 3, "You (alice) are not allowed"),
        (["install"], {"PATH": "NO_CRONTAB"}, 2, "crontab"),
        (["install-systemd"], {"PATH": "NO_SYSTEMD"}, 2, "systemd"),
        pytest.param(["install-systemd"], {}, 3, "loginctl enable-linger", marks=needs("systemctl")),
        (["remove", "--schedule", "@daily"], {}, 2, "--schedule"),
        (["instal"], {}, 2, "'instal'"),
        (["install", "--verbose"], {}, 2, "'--verbose'"),
    ],
)
def test_invalid_input_is_refused_and_changes_nothing(
    tmp_path: Path, setup: Setup, arguments: list[str], variables: dict[str, str], code: int, noun: str
) -> None:
    crontab = tmp_path / "crontab"
    crontab.write_bytes(FOREIGN)
    if variables.get("PATH", "").startswith("NO_"):
        few = tmp_path / "few"
        few.mkdir()
        for name in ("bash", "sh", "env", "dirname", "mktemp", "rm", "readlink", "id", "cat"):
            (few / name).symlink_to(shutil.which(name) or name)
        variables = {"PATH": str(few)}
    done = setup(*arguments, **variables)
    assert (done.returncode, noun in done.stderr) == (code, True), done.stderr
    assert crontab.read_bytes() == FOREIGN
    assert not (tmp_path / ".config").exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_no_problem() -> None:
    done = subprocess.run(
        ["shellcheck", SCRIPT, SCRIPT.parents[1] / ".ci/run"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_help_names_every_action_and_option() -> None:
    shown = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    cases = re.findall(r"^ +([a-z-]+(?: \| [a-z-]+)+)\)", SCRIPT.read_text(), re.MULTILINE)
    words = {word for case in cases for word in case.split(" | ") if word not in {"-h", "--help", "help"}}
    assert words > {"install", "remove-systemd", "--schedule", "--python"}
    assert [word for word in words if word not in shown] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_a_timer_elapses_at_the_times_of_the_cron_schedule() -> None:
    now = datetime(2026, 11, 25, 17, 3, tzinfo=UTC)
    expressions = [
        "0 2 * * *", "0 */6 * * *", "0 3 * * 0", "0 3 * * 7", "*/7 * * * *", "15,45 1-5/2 */2 1-6 1-5",
        "0 0 1 * 5-7", "30 4 1,15 * 5", "0 12 31 * *", "0 0 29 2 *", "59 23 */10 */3 *", "5 0 * 8 *",
        "0 22 * * 1-5", "0 0 * * sat,SUN", "@hourly", "@daily", "@weekly", "@monthly", "@yearly",
    ]  # fmt: skip
    source = f'source "{SCRIPT}"; while IFS= read -r schedule; do calendar; echo; done'
    said = subprocess.run(
        ["bash", "-c", source],
        input="\n".join(expressions) + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n\n")
    for expression, lines in zip(expressions, said[:-1], strict=True):
        times = [line.removeprefix("OnCalendar=") for line in lines.splitlines()]
        shown = subprocess.run(
            ["systemd-analyze", "calendar", "--iterations=8", f"--base-time={now:%F %T}", *times],
            env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        found = {
            datetime.fromisoformat(each).replace(tzinfo=UTC)
            for each in re.findall(r"(?:elapse|Iter\. #\d+|Iteration #\d+): \w{3} (\S+ \S+) UTC", shown)
        }
        names = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@monthly": "0 0 1 * *"}
        # A week starts on Monday for systemd and on Sunday for cron.
        names |= {"@weekly": "0 0 * * 1", "@yearly": "0 0 1 1 *"}
        expected = list(islice(CronSim(names.get(expression, expression), now), 6))
        assert sorted(found)[:6] == expected, (expression, lines)
