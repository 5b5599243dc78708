"""A real Debian with a real systemd, booted in a container without a network.

Debootstrap makes the root filesystem once, in the user's cache; each machine uses a copy.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SUITES = ("bookworm", "trixie")
SUITE = SUITES[0]
PACKAGES = (
    "systemd,systemd-sysv,dbus,make,procps,python3,python3-venv,sqlite3,util-linux"
    ",cron,libpam-systemd"  # a user's crontab and timers
)
TOOLS = ("systemd-nspawn", "debootstrap", "nsenter")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eemtcleanupd"
NSPAWN = ("systemd-nspawn", "--register=no", "--keep-unit", "--quiet")
OFFLINE = "--private-network"


def why_not() -> str | None:
    """Return why a machine cannot be booted on this host, None when it can."""
    if os.geteuid() != 0:
        return "needs root, to boot a container"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def base_root(suite: str = SUITE, packages: str = PACKAGES) -> Path:
    """Return the root filesystem that machines are copied from; make it if it is not in the cache."""
    key = hashlib.sha256(f"{suite} {packages}".encode()).hexdigest()[:12]
    root = _CACHE / f"{suite}-{key}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the container tests use it too
        if not root.exists():
            incomplete = root.with_suffix(f".{os.getpid()}")
            command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(incomplete)]
            run([*command, *_mirror()], timeout=900)
            incomplete.rename(root)
    return root


def _mirror() -> list[str]:
    """Return this host's mirror, which has all suites, or nothing for debootstrap's default."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    mirrors = [line.split()[0] for line in listed.stdout.splitlines() if line.split()[1] in SUITES]
    return mirrors[:1]


def wheelhouse(folder: Path) -> Path:
    """Download the dependencies for Debian's Python, since the machine has no network."""
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    needed = setup["options"]["install_requires"].split()
    needed += setup["options.extras_require"]["web"].split()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--python-version", "3.11", "--dest", str(folder)]
    run([*command, *needed, "setuptools>=69", "wheel"], timeout=600)
    return folder


def copy_source(folder: Path) -> None:
    """Copy what git knows or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    files = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True)
    for name in filter(None, files.stdout.decode().split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name, follow_symlinks=False)


def run(command: list[str], timeout: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")


@dataclass
class Machine:
    """A booted machine; ``root`` is its root filesystem as seen from outside."""

    root: Path
    leader: int = 0
    process: subprocess.Popen[bytes] | None = None

    def copy(self, base: Path) -> None:
        """Copy a root filesystem with cp, which copies device files without reading them."""
        run(["cp", "--archive", "--reflink=auto", str(base), str(self.root)], timeout=120)

    def install(self, scratch: Path) -> None:
        """Install the project as its user would: ``make install``."""
        copy_source(self.root / "usr/src/eemtcleanupd")
        shutil.copytree(wheelhouse(scratch / "wheels"), self.root / "usr/src/wheels")
        inside = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/usr/src/wheels make -C /usr/src/eemtcleanupd install"
        command = [*NSPAWN, OFFLINE, "--pipe", f"--directory={self.root}", "/bin/sh", "-c", inside]
        run(command, timeout=300)

    def boot(self) -> None:
        """Boot and wait until the start is complete."""
        console = ["--console=read-only", "--kill-signal=SIGRTMIN+4"]
        self.process = subprocess.Popen(
            [*NSPAWN, OFFLINE, *console, "--boot", f"--directory={self.root}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.until(self._find_leader, seconds=30)
        self.until(lambda: self.sh("systemctl is-system-running", check=False) in {"running", "degraded"}, 60)

    def _find_leader(self) -> bool:
        """Find the process that is process 1 in the container."""
        assert self.process is not None
        assert self.process.poll() is None, "the container did not start"
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError, ValueError):  # a process that ended meanwhile
                fields = dict(
                    line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line
                )
                inside = fields.get("NSpid", "").split()
                if len(inside) == 2 and inside[1] == "1" and self._is_ours(int(fields["PPid"])):
                    self.leader = int(status.parent.name)
                    return True
        return False

    def _is_ours(self, parent: int) -> bool:
        assert self.process is not None
        while parent > 1:
            if parent == self.process.pid:
                return True
            text = Path(f"/proc/{parent}/stat").read_text()
            parent = int(text.rpartition(")")[2].split()[1])
        return False

    def sh(self, script: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a shell script in the container as root and return its output.

        Raises:
            AssertionError: the script failed, and ``check`` is set.
        """
        enter = [
            "nsenter",
            f"--target={self.leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
        ]
        done = subprocess.run(
            [*enter, "--root", "--wd", "/bin/bash", "-c", script],
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
                "LANG": "C.UTF-8",
                "PAGER": "cat",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{self.journal()}"
        return (done.stdout + ("" if check else done.stderr)).strip()

    def journal(self) -> str:
        """Return the last lines of the service's journal."""
        return self.sh(
            "journalctl --sync; journalctl -u eemtcleanupd -n 60 --no-pager -o short-monotonic", check=False
        )

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until a condition holds.

        Raises:
            AssertionError: it did not hold in time; the message has the journal.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            journal = self.journal() if self.leader and time.monotonic() > deadline else ""
            assert time.monotonic() < deadline, f"the condition was not met in {seconds} s\n{journal}"
            time.sleep(0.1)

    def power_off(self) -> None:
        """Shut down, and kill the machine if that takes too long."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            self.process.kill()
            self.process.wait(30)
