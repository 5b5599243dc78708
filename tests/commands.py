"""Commands in processes of their own, forked from one that has imported them.

Importing takes most of the time of a short command.  Run as a program, this is that process.  A command can
have another user, whom it becomes before it starts.
"""

from __future__ import annotations

import ctypes
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_TIMEOUT_SECONDS = 100
_PR_SET_DUMPABLE = 4  # prctl(2)
# What a shell starts in place of the program, with the number of a channel in its environment.
CLIENT = """\
import json, os, socket, sys
channel = socket.socket(fileno=int(os.environ.pop("COMMANDS")))
channel.settimeout(100)
user = {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups()}
request = {"args": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "user": user}
socket.send_fds(channel, [json.dumps(request).encode()], [0, 1, 2])
channel.recv(100)
code = int(channel.recv(100))
os._exit(code if code >= 0 else 128 - code)
"""
# What few commands need, and some of it starts threads, which a fork loses.
_IMPORTED_LATE = ("eemtcleanupd.web", "eemtcleanupd.deletion.dask_executor", "eemtcleanupd.report.plots")


class Commands:
    """Runs commands as ``python -m eemtcleanupd ARGS`` does, with an environment of its own for each.

    Args:
        program: a Python, if other users cannot start this one.
        env: what that Python needs.
    """

    def __init__(self, program: str = sys.executable, env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [program, __file__, str(theirs.fileno())],
                env=_environment(env or {}),
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
            return self._fork(args, _environment(env), cwd, stdout)
        finally:
            self._lock.release()

    def run_as(
        self, uid: int, args: list[str], *, env: Mapping[str, str], cwd: Path, groups: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user and its group, with exactly this environment."""
        with self._lock:
            return self._fork(args, env, cwd, user={"uid": uid, "gid": uid, "groups": list(groups)})

    def run_shell_as(
        self, uid: int, command: str, *, env: Mapping[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell as a user and its group.  CLIENT can run our commands in it."""
        with self._lock:
            return subprocess.run(
                ["sh", "-c", command],
                user=uid,
                group=uid,
                extra_groups=[],
                env={**env, "COMMANDS": str(self._channel.fileno())},
                cwd=cwd,
                pass_fds=[self._channel.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )

    def _fork(
        self,
        args: list[str],
        env: Mapping[str, str],
        cwd: Path,
        stdout: IO[bytes] | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        request = json.dumps({"args": args, "env": dict(env), "cwd": str(cwd), "user": user}).encode()
        with (
            tempfile.TemporaryFile("w+") as output,
            tempfile.TemporaryFile("w+") as stderr,
            open(os.devnull) as stdin,
        ):
            files = [stdin.fileno(), (stdout or output).fileno(), stderr.fileno()]
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
        request, files, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not request:
            return False
        pid = os.fork()
        if pid == 0:
            channel.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            _become(**json.loads(request))
            return True
        for file in files:
            os.close(file)
        channel.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(args: list[str], env: dict[str, str], cwd: str, user: dict[str, Any] | None) -> None:
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    if user is not None:
        os.setgroups(user["groups"])
        os.setresgid(*[user["gid"]] * 3)
        os.setresuid(*[user["uid"]] * 3)
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after execve(2): /proc/self is its own
    sys.argv = ["eemtcleanupd", *args]
    sys.path[0] = cwd


if __name__ == "__main__":
    _import_all()
    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        from eemtcleanupd.cli.main import main

        main()
