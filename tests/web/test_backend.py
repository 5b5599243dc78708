"""The backend of the worker, with a daemon that does not answer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from fastapi import Request
from starlette.types import Message

from eemtcleanupd.plugins import load
from eemtcleanupd.web.app import create_app
from eemtcleanupd.web.auth import Authenticator, Caller
from eemtcleanupd.web.backend import DaemonBackend
from eemtcleanupd.web.ipc import WorkerChannel
from eemtcleanupd.web.routes.queries import progress_events
from eemtcleanupd.web.supervisor import open_address
from eemtcleanupd.web.worker import HttpServer
from tests.cleanup.conftest import JobStore
from tests.daemon.conftest import HEAD
from tests.web.test_supervisor import get_status


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[tuple[DaemonBackend, Connection]]:
    """A backend, and the daemon's end of its channel, which never answers."""
    JobStore(tmp_path)
    (tmp_path / "c.yaml").write_text(f"{HEAD}api: {{enabled: true, listen: 'unix:{tmp_path}/s'}}\n")
    daemon_end, worker_end = Pipe()
    with daemon_end, worker_end:
        loaded = load(tmp_path / "c.yaml", environ={}, cwd=tmp_path)
        channel = WorkerChannel(os.dup(worker_end.fileno()))
        yield DaemonBackend(channel, loaded, timeout_seconds=0.01, state_lifetime_seconds=0.0), daemon_end


def test_a_silent_daemon_makes_pages_fail_and_streams_wait(
    silent: tuple[DaemonBackend, Connection], tmp_path: Path
) -> None:
    backend, address = silent[0], tmp_path / "s"
    with open_address(backend.config.api.listen, 0o600) as listening:
        server = HttpServer(create_app(backend, Authenticator(backend, open_to_all=True)), listening)
        server.start()
        try:
            assert get_status(address, "/") == 503
        finally:
            server.stop()

    async def never_disconnects() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def first_events() -> list[str]:
        request = Request({"type": "http"}, never_disconnects)
        events = progress_events(backend, request, Caller("x", "read", None), once=False)
        return [await anext(events), await anext(events)]

    assert all(event.startswith(":") for event in asyncio.run(first_events())), "comments of the stream"


def test_the_state_is_requested_once_until_the_daemon_answers(
    silent: tuple[DaemonBackend, Connection],
) -> None:
    """Otherwise the requests would fill the socket."""
    backend, daemon_end = silent
    for _ in range(3):
        assert not asyncio.run(backend.is_alive())
    assert json.loads(daemon_end.recv_bytes())["request"] == "state"
    assert not daemon_end.poll(0)
