"""What the HTTP interface is told of a daemon."""

from __future__ import annotations

from tests.daemon.conftest import Living


def test_health_ends_when_the_loop_does_not_go_round(living: Living) -> None:
    from eemtcleanupd.web.engine import DaemonEngine

    engine = DaemonEngine(living.start())
    living.step()
    assert engine.is_alive()
    living.elapsed += 100
    assert not engine.is_alive()
    living.step()
    assert engine.is_alive()
