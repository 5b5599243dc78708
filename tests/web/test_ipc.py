"""What the daemon and the HTTP worker send each other."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest

from eemtcleanupd.daemon.status import DaemonStatus, RunStatus
from eemtcleanupd.errors import LockHeldError, ReportError
from eemtcleanupd.events import RunFinished, Warned
from eemtcleanupd.plugins import from_dict, load, to_dict
from eemtcleanupd.store.database import TempTablesLostError
from eemtcleanupd.web.api_run import ApiRun, Outcome
from eemtcleanupd.web.ipc import (
    ApiRunFinished,
    ApiRunStarted,
    DaemonChannel,
    DaemonMessage,
    MetricsReply,
    Settings,
    StateReply,
    StopWorker,
    WorkerChannel,
    decode,
    encode,
)
from eemtcleanupd.web.schemas import CleanupBody
from eemtcleanupd.web.supervisor import send_outcome
from tests.notifiers import samples

NOW = datetime(2026, 6, 15, 12, 0, 0, 1, tzinfo=UTC)
STATUS = DaemonStatus(
    pid=1,
    version="1",
    state="running",
    started_at=NOW,
    heartbeat_at=NOW,
    next_run_at=None,
    schedule="0 2 * * *",
    dry_run=False,
    run=RunStatus("api", NOW, 1, 2, 3),
    config_file="/etc/\udcff.yaml",
    config_loaded_at=NOW,
    config_attempts=1,
    config_attempted_at=NOW,
    config_error=None,
    last_error="é",
    unresponsive=("slack",),
)


@pytest.mark.parametrize(
    "message",
    [
        Settings({"values": "a: 1\n"}, 20),
        StateReply(1, STATUS, 0.5),
        StateReply(2, replace(STATUS, run=None, next_run_at=NOW), 0.5),
        MetricsReply(3, "# HELP é\n"),
        ApiRunStarted(4, "20240120T020001-3f2a"),
        ApiRunFinished(5, None, '{"success": true}'),
        ApiRunFinished(6, None, is_in_file=True),
        StopWorker(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_is_equal_after_a_round_trip_as_json(message: DaemonMessage) -> None:
    data = encode(message)
    assert isinstance(json.loads(data), dict)
    assert decode(data) == message


@pytest.mark.parametrize(
    ("error", "received"),
    [(LockHeldError("é \udcff"), LockHeldError), (TempTablesLostError("x"), TempTablesLostError.__base__)],
)
def test_an_error_keeps_its_text_and_its_public_class(error: LockHeldError, received: type) -> None:
    message = decode(encode(ApiRunFinished(1, error)))
    assert isinstance(message, ApiRunFinished)
    assert (type(message.error), str(message.error)) == (received, str(error))


def test_the_secrets_of_settings_are_not_in_their_repr() -> None:
    assert "hunter2" not in repr(Settings({"values": "password: hunter2"}, 20))


@pytest.mark.parametrize("warnings", [1, 9, 30])
def test_a_document_of_any_length_arrives(warnings: int) -> None:
    daemon_end, worker_end = Pipe()
    with closing(DaemonChannel(daemon_end)) as channel, worker_end:
        run = ApiRun("x", CleanupBody(), print, lambda outcome: send_outcome(channel, 1, outcome))
        thread = Thread(target=finish, args=(run, warnings))
        thread.start()
        finished, file = WorkerChannel(os.dup(worker_end.fileno())).receive()
        thread.join()
    assert isinstance(finished, ApiRunFinished)
    assert finished.is_in_file == (warnings == 30)
    with StringIO(finished.document) if file is None else os.fdopen(file) as document:
        assert json.load(document)["warnings"] == ["x" * 100_000] * warnings


def finish(run: ApiRun, warnings: int) -> None:
    """Call the callbacks as a successful run with long warnings does."""
    callbacks, report = run.callbacks(), samples.report()
    for _ in range(warnings):
        callbacks.emit(Warned("x" * 100_000))
    callbacks.emit(RunFinished(report))
    callbacks.done(report)


def test_without_space_for_its_document_a_run_reports_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    outcomes: list[Outcome] = []
    finish(ApiRun("x", CleanupBody(), print, outcomes.append), 30)
    (outcome,) = outcomes
    assert isinstance(outcome, ReportError)


@pytest.mark.slow
def test_the_connection_to_a_worker_that_does_not_read_is_shut_down() -> None:
    """It might have received a part of a message."""
    daemon_end, worker_end = Pipe()
    channel = DaemonChannel(daemon_end, send_timeout_seconds=1)
    with worker_end, closing(channel):
        with pytest.raises(BlockingIOError):
            channel.send(ApiRunFinished(1, None, "x" * 1_000_000))
        assert daemon_end.poll(0)
        with pytest.raises(EOFError):
            channel.receive()


def test_a_configuration_is_equal_after_a_round_trip_as_json(tmp_path: Path) -> None:
    """With the models of plugins, which exist at run time only, timestamps, and secrets."""
    (tmp_path / "guard.py").write_text(
        "import datetime, enum, pluggy\nfrom pydantic import BaseModel, field_validator\n"
        "hookimpl = pluggy.HookimplMarker('eemtcleanupd')\n"
        "class Kind(enum.Enum):\n    small = 'small'\n"
        "class Keys(BaseModel):\n    limit: int\n    kind: Kind\n    names: list[str]\n"
        "    day: datetime.date\n    moment: object\n"
        "    @field_validator('names', mode='before')\n    @classmethod\n"
        "    def _split(cls, names):\n        return names.split()\n"
        "@hookimpl\ndef register_settings():\n    return Keys\n"
        "@hookimpl\ndef veto_cleanup(job, settings):\n    return None\n"
    )
    file = tmp_path / "cleanup_config.yaml"
    file.write_text(
        "plugins: [guard]\n"
        "notifications: {guard: {limit: 3, kind: small, names: 'a b', day: 2026-01-02,\n"
        "  moment: 2026-01-02T03:04:05+02:00},\n"
        " slack: {enabled: true, webhook_url: '${HOOK}'}}\n"
        "retention: {successful_jobs: {hours: 5}}\ncapacity: {max_bytes: 1T}\n"
    )
    loaded = load(file, environ={"HOOK": "https://hooks.example/secret"}, cwd=tmp_path)
    assert "secret" not in repr(loaded)
    received = from_dict(json.loads(json.dumps(to_dict(loaded))))
    assert received == loaded
    assert list(received.settings()) == list(loaded.settings())
    assert "secret" not in repr(received)
