"""``python -m benchmarks.notifiers``: the same run without notifiers, with the audit log, with broken ones.

The figure is how long the run itself took, as it recorded it: what is told goes out beside and after it.
Ratios are medians of the rounds' own ratios to the run without anything.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from benchmarks.stores import Shape, build_expired

_RAISING = """
from eemtcleanupd.hookspecs import hookimpl

@hookimpl
def job_cleaned(event):
    raise RuntimeError("always")

@hookimpl
def run_finished(event):
    raise RuntimeError("always")
"""
_NONE = "notifications: {audit_log: {enabled: false}}\n"
_BROKEN = """
plugins: [raising]
notifications:
  slack: {{enabled: true, timeout_seconds: 0.5, webhook_url: "http://127.0.0.1:{silent}/x"}}
  email: {{enabled: true, timeout_seconds: 0.5, smtp_port: {closed}, recipients: [a@example.com]}}
"""


def _seconds(store: Path, config: str) -> float:
    (store / "cleanup_config.yaml").write_text(config)
    (store / "raising.py").write_text(_RAISING)
    command = [sys.executable, "-m", "eemtcleanupd", "clean", "--json", "--force"]
    environ = {**os.environ, "PYTHONPATH": str(store)}
    done = subprocess.run(command, cwd=store, env=environ, check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    times = [datetime.fromisoformat(report[name]) for name in ("started_at", "finished_at")]
    return (times[1] - times[0]).total_seconds()


def main(rounds: int = 7) -> None:
    """Measure and print."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        contenders = {
            "without": _NONE,
            "audit log": "",
            "audit log, Slack hanging, SMTP refusing, a plugin raising": _BROKEN.format(**ports),
        }
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds):
            order = list(contenders)
            for name in order[number % 3 :] + order[: number % 3]:
                with tempfile.TemporaryDirectory() as folder:
                    store = Path(folder) / "store"
                    build_expired(store, Shape(jobs=400, files=50, folders=4))
                    os.sync()
                    taken[name].append(_seconds(store, contenders[name]))
    for name, seconds in taken.items():
        ratios = [mine / none for mine, none in zip(seconds, taken["without"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: {statistics.median(seconds):.2f} s, {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
