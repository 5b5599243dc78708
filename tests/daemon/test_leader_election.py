"""Leader election: two daemons, each its own process, on one PostgreSQL database."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eemtcleanupd.clock import monotonic_seconds
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.postgres import Server
from tests.stress import failover

pytestmark = pytest.mark.timeout(400)
# After less, a daemon that had to wait for a processor would lose its role.
_TAKEOVER_SECONDS = 60


@pytest.fixture
def pair(tmp_path: Path, postgres: Server) -> Iterator[failover.Pair]:
    url = postgres.create()
    pair = failover.Pair(JobStore(tmp_path / "store", url=url), url, _TAKEOVER_SECONDS)
    yield pair
    pair.close()


def until(condition: Callable[[], object]) -> None:
    import time

    deadline = monotonic_seconds() + 100
    while not condition():
        assert monotonic_seconds() < deadline, "the condition was not met in time"
        time.sleep(0.05)


def role(pair: failover.Pair, name: str) -> str:
    status = pair.status(name)
    return "" if status is None else status.role


@pytest.mark.slow
def test_a_second_daemon_is_the_standby_reports_it_and_takes_over(
    pair: failover.Pair, tmp_path: Path, run_cli: RunCli
) -> None:
    until(lambda: {role(pair, "a"), role(pair, "b")} == {"active", "standby"})
    active, standby = ("a", "b") if role(pair, "a") == "active" else ("b", "a")
    first, second = pair.status(active), pair.status(standby)
    assert first is not None
    assert second is not None
    assert second.state == "standby"
    document = json.loads(
        run_cli("status", "--json", "--config", f"{standby}.yaml", cwd=tmp_path / "store").stdout
    )
    assert (document["role"], document["pid"]) == ("standby", second.pid)
    assert (document["active"]["pid"], document["active"]["host"]) == (first.pid, socket.gethostname())
    shown = run_cli("status", "--config", f"{standby}.yaml", cwd=tmp_path / "store").stdout
    assert str(first.pid) in shown
    third = run_cli("run", "--config", "third.yaml", cwd=third_store(tmp_path, active))
    assert third.returncode == 4
    assert str(first.pid) in third.stderr
    assert socket.gethostname() in third.stderr
    pair.stop(active)
    until(lambda: role(pair, standby) == "active")


def third_store(tmp_path: Path, name: str) -> Path:
    """Configure a daemon that must not be a standby."""
    text = (tmp_path / f"store/{name}.yaml").read_text()
    text = text.replace(f"logs-{name}", "logs-c").replace(f"seconds: {_TAKEOVER_SECONDS}", "seconds: 0")
    (tmp_path / "store/third.yaml").write_text(text)
    return tmp_path / "store"


@pytest.mark.slow
def test_every_expired_job_is_cleaned_once_while_active_daemons_are_killed_frozen_and_cut_off() -> None:
    outcome = failover.run(10, backlog=60)
    assert outcome.faults == []
    assert outcome.done["cleaned"] == outcome.done["jobs"] >= 60
    assert sum(outcome.done[attack] for attack in ("kill", "freeze", "cut", "stop")) > 0
