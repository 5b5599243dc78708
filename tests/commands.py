"""Commands in processes of their own, forked from one that has imported them.

Importing takes most of the time of a short command.  Run as a program, this is that process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_TIMEOUT_SECONDS = 100
# What few commands need, and some of it starts threads, which a fork loses.
_IMPORTED_LATE = ("eemtcleanupd.web", "eemtcleanupd.deletion.dask_executor", "eemtcleanupd.report.plots")


class Commands:
    """Runs commands as ``python -m eemtcleanupd ARGS`` does, with an environment of its own for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=_environment({}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._channel.settimeout(_TIMEOUT_SECONDS)

    def close(self) -> None:
        self._channel.close()
        self._server.wait(_TIMEOUT_SECONDS)

    def run(
        self, args: list[str], *, env: Mapping[str, str], cwd: Path, stdout: IO[bytes] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.  With a file for its output, return only what it reports."""
        is_read_at_start = any(name.startswith(("LANG", "LC_", "PYTHON")) for name in env)
        if is_read_at_start or not self._lock.acquire(blocking=False):
            return _run_anew(args, env=env, cwd=cwd, stdout=stdout)
        try:
            return self._fork(args, env=env, cwd=cwd, stdout=stdout)
        finally:
            self._lock.release()

    def _fork(
        self, args: list[str], *, env: Mapping[str, str], cwd: Path, stdout: IO[bytes] | None
    ) -> subprocess.CompletedProcess[str]:
        request = json.dumps({"args": args, "env": _environment(env), "cwd": str(cwd)}).encode()
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as stderr:
            files = [(stdout or output).fileno(), stderr.fileno()]
            socket.send_fds(self._channel, [request], files)
            pid = int(self._channel.recv(100))
            try:
                code = int(self._channel.recv(100))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._channel.recv(100)
                raise subprocess.TimeoutExpired(args, _TIMEOUT_SECONDS) from None
            output.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(args, code, output.read(), stderr.read())


def _run_anew(
    args: list[str], *, env: Mapping[str, str], cwd: Path, stdout: IO[bytes] | None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "eemtcleanupd", *args],
        env=_environment(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", **env}


def _import_all() -> None:
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # as the command line does
    import eemtcleanupd

    for module in pkgutil.walk_packages(eemtcleanupd.__path__, "eemtcleanupd."):
        if not module.name.startswith(_IMPORTED_LATE) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("humanize", "sqlalchemy.dialects.sqlite"):
        importlib.import_module(name)
    from eemtcleanupd.plugins import load

    load(None, environ={}, cwd=Path("/"))  # completes the models of the configuration
    assert threading.active_count() == 1
    gc.freeze()


def _serve(channel: socket.socket) -> bool:
    """Fork a process for each request.  Return True in such a process, False at the end."""
    while True:
        request, files, _, _ = socket.recv_fds(channel, 1 << 20, 2)
        if not request:
            return False
        pid = os.fork()
        if pid == 0:
            channel.close()
            for number, file in enumerate(files, 1):
                os.dup2(file, number)
                os.close(file)
            _become(**json.loads(request))
            return True
        for file in files:
            os.close(file)
        channel.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(args: list[str], env: dict[str, str], cwd: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.argv = ["eemtcleanupd", *args]
    sys.path[0] = cwd


if __name__ == "__main__":
    _import_all()
    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        from eemtcleanupd.cli.main import main

        main()
