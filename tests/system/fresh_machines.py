"""``make run`` and ``make test`` on fresh machines: a Debian with Python, venv and make, and nothing else.

The virtual environment is set up with this host's network and configuration of pip.  All that follows has
no network.  Run it as root: ``python -m tests.system.fresh_machines [SUITE or INTERPRETER ...]``, by default
with all suites, and with the Python that no suite has if this host has it.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.system.machine import NSPAWN, OFFLINE, SUITES, Machine, base_root, copy_source, run, why_not

PACKAGES = "python3,python3-venv,make"
OTHER_PYTHON = "python3.12"
USERS = {"alice": "home/alice", "root": "root"}
_NETWORK = ("http_proxy", "https_proxy", "no_proxy")
_ENVIRONMENT = (*_NETWORK, *map(str.upper, _NETWORK), "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def pip_settings() -> dict[str, str]:
    """Return the configuration of pip on this host, as environment variables."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    settings = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    for section in ("global.", "install.", ":env:."):  # later ones win
        for line in listed:
            if line.startswith(section):
                key, _, value = line.removeprefix(section).partition("=")
                settings[f"PIP_{key.replace('-', '_').upper()}"] = ast.literal_eval(value)
    return settings


def online_options() -> Iterator[str]:
    """Yield the options that let pip in the machine read what pip on this host reads."""
    for name, value in pip_settings().items():
        yield f"--setenv={name}={value}"
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if word.startswith("file:"):
                path = path.parent  # an index refers to files beside it
            if path.is_absolute() and path.exists():
                yield f"--bind-ro={path}"


def try_suite(suite: str, scratch: Path) -> dict[str, bool]:
    """Run the commands as root and as an ordinary user, and return whether they passed."""
    machine = Machine(scratch / suite)
    machine.copy(base_root(suite, PACKAGES))
    (machine.root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")  # as every installer does
    inside = [*NSPAWN, "--pipe", "--as-pid2", f"--directory={machine.root}"]
    run([*inside, OFFLINE, "useradd", "--create-home", "alice"], timeout=60)
    results = {}
    for user, home in USERS.items():
        source = f"{home}/eemtcleanupd"
        copy_source(machine.root / source)
        run([*inside, OFFLINE, "chown", "--recursive", f"{user}:", f"/{home}"], timeout=60)
        here = [*inside, f"--user={user}", f"--chdir=/{source}"]
        results[f"{suite} as {user}"] = succeed(
            [*here, *online_options(), "make", ".venv/.ready"],
            [*here, OFFLINE, "make", "run"],
            [*here, OFFLINE, "make", "test"],
        )
    shutil.rmtree(machine.root)
    return results


def try_interpreter(python: str, scratch: Path) -> dict[str, bool]:
    """Run the commands with an interpreter of this host."""
    folder = scratch / Path(python).name
    copy_source(folder)
    make = ["make", f"--directory={folder}", f"PYTHON={shutil.which(python)}"]
    return {python: succeed([*make, "run"], [*make, "test"])}


def starts(python: str) -> bool:
    """Return whether an interpreter is there; the shim of a version manager can stand for none."""
    return shutil.which(python) is not None and succeed([python, "-c", "import venv"])


def succeed(*commands: Sequence[str]) -> bool:
    return all(
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0 for command in commands
    )


def main(wanted: Sequence[str]) -> int:
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    if not wanted:
        wanted = [*SUITES, *([OTHER_PYTHON] if starts(OTHER_PYTHON) else [])]
    results: dict[str, bool] = {}
    started = time.monotonic()
    # Not in a memory filesystem: each machine has a virtual environment of 600 MB for each user.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for each in wanted:
            results |= (try_suite if each in SUITES else try_interpreter)(each, Path(folder))
    for what, passed in results.items():
        print(f"{what}: {'passed' if passed else 'FAILED'}")
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
