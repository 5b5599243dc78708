"""The record of refused requests: bounded lines, bounded memory, and every refusal counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eemtcleanupd.clock import system_clock
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.web.refusals import BURST_LINES, LINES_PER_SECOND, Refusals, client_group


class Audit(list[AuditEntry]):
    """Plugins that keep the entries."""

    def audit(self, entries: list[AuditEntry]) -> None:
        self.extend(entries)

    def lines(self) -> int:
        return sum(entry.action == "http_refused" for entry in self)

    def omitted(self) -> int:
        return sum(entry.details["count"] for entry in self if entry.action == "http_refused_omitted")


class Recorder:
    """Refusals with a clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.audit = Audit()
        backend: Any = SimpleNamespace(plugins=self.audit)
        self.refusals = Refusals(backend, system_clock, lambda: self.now)

    def refuse(self, address: str | None) -> bool:
        return self.refusals.record("GET", "/", "no token", address)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_many_addresses_share_one_budget_and_each_refusal_is_counted(recorder: Recorder) -> None:
    for number in range(5000):
        recorder.refuse(f"10.0.{number // 250}.{number % 250}")
    assert recorder.audit.lines() == BURST_LINES
    recorder.refusals.write_summary()
    assert recorder.audit.lines() + recorder.audit.omitted() == 5000
    recorder.now += 60
    for number in range(1000):
        recorder.refuse(f"10.1.{number // 250}.{number % 250}")
    assert recorder.audit.lines() == BURST_LINES + round(60 * LINES_PER_SECOND)
    recorder.refusals.write_summary()
    recorder.refusals.write_summary()
    assert recorder.audit.lines() + recorder.audit.omitted() == 6000


def test_a_throttled_client_gets_no_line_but_is_counted(recorder: Recorder) -> None:
    throttled = [recorder.refuse("203.0.113.1") for _ in range(100)]
    assert throttled == [False] * 60 + [True] * 40
    assert not recorder.refuse("203.0.113.2")
    recorder.refusals.write_summary()
    assert (recorder.audit.lines(), recorder.audit.omitted()) == (62, 39)
    recorder.now += 61
    assert not recorder.refuse("203.0.113.1")


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:203.0.113.1", "203.0.113.1", True),
        ("::ffff:203.0.113.1", "::ffff:203.0.113.2", False),
        ("127.0.0.1", "127.9.8.7", True),
        ("127.0.0.1", "::1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("203.0.113.1", "203.0.113.2", False),
    ],
)
def test_addresses_that_one_client_can_have_are_one_client(first: str, second: str, *, are_one: bool) -> None:
    assert (client_group(first) == client_group(second)) is are_one


def test_clients_without_an_address_are_one_client(recorder: Recorder) -> None:
    assert [recorder.refuse(None) for _ in range(61)][-1]
