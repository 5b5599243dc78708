"""The Debian package: build, installation, upgrade and purge in a separate Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd import __version__
from tests.system.machine import PROJECT, Machine, base_root, why_not

CONFIG = "/etc/eemtcleanupd/cleanup_config.yaml"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Options::=--force-confold"
# Fast compression; the packed files are the same.
COMPRESSION = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}


def build(folder: Path, **environment: str) -> Path:
    """Build the package below ``folder`` with ``make deb``."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "deb", f"BUILD={folder}/build", f"OUT={folder}/out"],
        cwd=PROJECT,
        env=keep | COMPRESSION | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    (package,) = (folder / "out").glob("*.deb")
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of this source."""
    if reason := why_not():
        pytest.skip(reason)
    if shutil.which("dh") is None or os.readlink("/usr/bin/python3") != "python3.11":
        pytest.skip("needs debhelper, on the Debian that the machine has")
    return build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def newer(package: Path) -> Path:
    """The next version of the package, with a different configuration file."""
    tree = package.parent / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    for name, old, new in [
        ("DEBIAN/control", f"Version: {__version__}-1", f"Version: {__version__}-2"),
        (CONFIG[1:], "successful_jobs:", "# This is new.\n  successful_jobs:"),
    ]:
        text = (tree / name).read_text(encoding="utf-8")
        assert old in text
        (tree / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package.parent)]
    subprocess.run(command, env=os.environ | COMPRESSION, check=True)
    (next_package,) = package.parent.glob("*-2_*.deb")
    return next_package


@pytest.fixture(scope="module")
def fresh(package: Path, newer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A running machine without the program; both packages are in /root."""
    machine = Machine(tmp_path_factory.mktemp("debian") / "root")
    machine.copy(base_root())
    try:
        for file in (package, newer):
            shutil.copy(file, machine.root / "root")
        # The machine is discarded after the test, so dpkg need not wait for the disk.
        (machine.root / "etc/dpkg/dpkg.cfg.d/quick").write_text("force-unsafe-io\n", encoding="utf-8")
        machine.boot()
        yield machine
    finally:
        machine.power_off()
        shutil.rmtree(machine.root, ignore_errors=True)


@pytest.fixture
def machine(fresh: Machine) -> Machine:
    """The machine with the package just installed, and a job store in /srv/eemt."""
    fresh.sh("systemctl stop eemtcleanupd; rm -rf /srv/eemt", check=False)
    query = "dpkg-query -W -f '${Version}' eemtcleanupd && dpkg --verify eemtcleanupd"
    if fresh.sh(query, check=False) == f"{__version__}-1":
        fresh.sh("systemd-tmpfiles --create eemtcleanupd.conf")
    else:
        fresh.sh(f"{APT} purge eemtcleanupd", check=False)
        fresh.sh(f"cd /root && {APT} install ./eemtcleanupd_*-1_*.deb")
    assert fresh.sh("stat -c '%U %a' /srv/eemt /srv/eemt/logs") == "eemt 755\neemt 750"
    fresh.sh(
        "eemtcleanupd demo /srv/demo --jobs 60 >/dev/null && rm /srv/demo/cleanup_config.yaml"
        " && mv /srv/demo/* /srv/eemt/ && rmdir /srv/demo && chown -R eemt: /srv/eemt"
    )
    return fresh


def show(machine: Machine, name: str) -> str:
    return machine.sh(f"systemctl show eemtcleanupd -P {name}")


def jobs(machine: Machine) -> str:
    """Return all files of all jobs with content, owner, mode and time, and all rows."""
    files = "find uploads results temp -mindepth 1 -not -path '*/.eemtcleanupd-trash*'"
    return machine.sh(
        f"cd /srv/eemt && {{ {files} -printf '%p %y %m %u %g %T@ %l\\n' | sort"
        f" && {files} -type f -print0 | sort -z | xargs -0 sha256sum"
        " && sqlite3 -cmd '.timeout 20000' jobs.db 'SELECT id, status, parameters, completed_at FROM jobs';"
        " } | cat -v"
    )


def moment(machine: Machine, line: str) -> float:
    """Return the time of the last journal line of the service that begins with ``line``."""
    last = machine.sh(f"journalctl -u eemtcleanupd --no-pager -o short-unix | grep ': {line}' | tail -n 1")
    return float(last.split()[0])


def test_after_installation_and_start_nothing_is_deleted_without_a_request(machine: Machine) -> None:
    assert show(machine, "ActiveState") == "inactive"
    assert machine.sh("systemctl is-enabled eemtcleanupd", check=False) == "disabled"
    before = jobs(machine)
    machine.sh("systemctl start eemtcleanupd")
    assert show(machine, "ActiveState") == "active"
    assert machine.sh(f"ps -o user= -p {show(machine, 'MainPID')}") == "eemt"
    assert machine.sh("eemtcleanupd --version").endswith(f" {__version__}")
    assert jobs(machine) == before
    # On request it cleans.
    machine.sh("systemctl kill --kill-whom=main -s USR1 eemtcleanupd")
    machine.until(lambda: "Cleanup completed" in machine.journal())
    assert jobs(machine) != before
    machine.sh("systemctl enable eemtcleanupd && systemctl disable eemtcleanupd")


def test_installed_files_are_compiled_and_do_not_contain_the_build_path(machine: Machine) -> None:
    python = "runuser -u eemt -- /usr/lib/eemtcleanupd/bin/python -v -m eemtcleanupd --version 2>&1"
    assert (
        machine.sh(f"{python} | grep -c \"^# code object from '/usr/lib/eemtcleanupd/.*py'\" || true") == "0"
    )
    assert machine.sh(f"{python} | grep -c '^# .* matches /usr/lib/eemtcleanupd/.*py$'") != "0"
    built = "debian/eemtcleanupd/usr"
    assert machine.sh(f"grep -rl {built} /usr/lib/eemtcleanupd /usr/share/doc/eemtcleanupd || true") == ""
    assert machine.sh("dpkg --verify eemtcleanupd") == ""


def test_completion_works_in_three_shells(machine: Machine, tmp_path: Path) -> None:
    share = machine.root / "usr/share"
    bash = share / "bash-completion/completions/eemtcleanupd"
    assert "check" in machine.sh(
        f". /{bash.relative_to(machine.root)}; COMP_WORDS=(eemtcleanupd che) COMP_CWORD=1;"
        ' _eemtcleanupd_completion eemtcleanupd; echo "${COMPREPLY[@]}"'
    )
    path = f"{PROJECT}/.venv/bin:{os.environ['PATH']}"
    if shutil.which("fish"):
        environment = {"PATH": path, "HOME": str(tmp_path), "XDG_DATA_DIRS": str(share)}
        fish = ["fish", "--command", 'complete --do-complete "eemtcleanupd che"']
        done = subprocess.run(fish, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("check")
    if shutil.which("zsh"):
        script = (
            f"fpath=({share}/zsh/vendor-completions $fpath); autoload -Uz compinit && compinit -u -D"
            " && print $_comps[eemtcleanupd] && autoload +X -Uz _eemtcleanupd"
            " && zsh -n $functions_source[_eemtcleanupd]"
        )
        zsh = ["zsh", "-f", "-c", script]
        done = subprocess.run(zsh, env={"PATH": path}, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("_eemtcleanupd\n", "")


def test_the_man_page_is_found_and_has_the_version(machine: Machine) -> None:
    man = ["man", "-M", str(machine.root / "usr/share/man"), "8", "eemtcleanupd"]
    text = subprocess.run(man, capture_output=True, text=True, check=True).stdout
    assert "retention daemon" in text
    assert f"eemtcleanupd {__version__}" in text.splitlines()[-1]


def test_an_upgrade_stops_and_restarts_it_and_keeps_a_changed_configuration(
    machine: Machine,
) -> None:
    machine.sh("systemctl start eemtcleanupd")
    machine.sh(f"sed -i 's/^    hours: 12$/    hours: 99/' {CONFIG}; cp {CONFIG} /root/mine")
    before = jobs(machine)
    machine.sh(f"cd /root && {APT} install ./eemtcleanupd_*-2_*.deb")
    assert machine.sh("dpkg-query -W -f '${Version}' eemtcleanupd") == f"{__version__}-2"
    machine.sh(f"cmp {CONFIG} /root/mine && grep 'This is new' {CONFIG}.dpkg-dist")
    assert show(machine, "ActiveState") == "active"
    assert machine.sh("systemctl is-enabled eemtcleanupd", check=False) == "disabled"
    exchanged = float(machine.sh("stat -c %.6Z /usr/lib/eemtcleanupd/bin/eemtcleanupd"))
    assert moment(machine, "Stopped ") < exchanged < moment(machine, "Started ")
    assert jobs(machine) == before
    # A stopped service stays stopped.
    machine.sh(f"systemctl stop eemtcleanupd; cd /root && {APT} reinstall ./eemtcleanupd_*-2_*.deb")
    assert show(machine, "ActiveState") == "inactive"


def test_a_purge_removes_the_configuration_and_keeps_the_job_store(machine: Machine) -> None:
    machine.sh(
        "echo secret >/etc/eemtcleanupd/slack-webhook; echo A=b >/etc/default/eemtcleanupd;"
        " systemctl enable --now eemtcleanupd"
    )
    before = jobs(machine)
    machine.sh(f"{APT} remove eemtcleanupd")
    assert show(machine, "ActiveState") == "inactive"
    machine.sh(f"ls {CONFIG} /etc/eemtcleanupd/slack-webhook /etc/default/eemtcleanupd")
    machine.sh(f"{APT} purge eemtcleanupd")
    assert jobs(machine) == before
    machine.sh("getent passwd eemt && ls /srv/eemt/logs/cleanup.log")
    left = machine.sh(
        "find / -xdev -iname '*eemtcleanupd*' -not -path '/srv/*' -not -path '/root/*' -not -path '/var/*'"
        " -not -path '/proc/*' -not -path '/sys/*'"
    )
    assert left == ""


def test_lintian_finds_no_unexplained_problem(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", package],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_build_is_reproducible(package: Path, tmp_path: Path) -> None:
    second = build(tmp_path / "somewhere" / "else", TZ="Asia/Tokyo", LC_ALL="C.UTF-8", PYTHONHASHSEED="7")
    if second.read_bytes() != package.read_bytes():
        listings = [
            subprocess.check_output(["dpkg-deb", "--contents", file], text=True) for file in (package, second)
        ]
        different = set(listings[0].splitlines()) ^ set(listings[1].splitlines())
        pytest.fail("\n".join(["not the same bytes", *sorted(different)[:40]]))
