"""Takes docs/images/dashboard-*.png in a browser: ``python -m tools.dashboard_screenshots``.

The screenshots show the dashboard of a new demo job store with 90 days of invented history.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import sync_playwright

_IMAGES = Path(__file__).parents[1] / "docs/images"
_URL = "http://127.0.0.1:5917"
_CONFIG = """
api: {enabled: true, listen: "127.0.0.1:5917", tokens_file: ./tokens.json}
trash: {grace_hours: 24}
schedule: {enabled: true, cron: "0 2 * * *"}
safety: {max_jobs_per_run: 40}
"""
_SHOTS: dict[str, dict[str, object]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


def main() -> None:
    """Build a store, clean some of it, start a daemon, and take the screenshots."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "eemtcleanupd"]
        subprocess.run([*command, "demo", folder], check=True, capture_output=True)
        with (Path(folder) / "cleanup_config.yaml").open("a") as file:
            file.write(_CONFIG)

        def run(*arguments: str) -> str:
            done = subprocess.run(
                [*command, *arguments], cwd=folder, check=True, capture_output=True, text=True
            )
            return done.stdout

        run("clean")
        _add_history(Path(folder) / "jobs.db")
        token = run("token", "add", "ann", "--scope", "clean").split()[-1]
        daemon = subprocess.Popen([*command, "run"], cwd=folder, stderr=subprocess.DEVNULL)
        try:
            _wait_for_daemon()
            _take_screenshots(token)
        finally:
            daemon.terminate()
            daemon.wait()


def _add_history(database: Path) -> None:
    giga, mega = 2**30, 2**20
    with closing(sqlite3.connect(database)) as connection, connection:
        for day in range(90, 0, -1):
            wave = math.sin(day / 3.5) + 0.3 * math.sin(day * 1.9)
            held = int((170 + (90 - day) / 3 + 22 * wave) * mega)
            free = int((126 - (90 - day) * 0.55 - 3 * wave) * giga)
            timestamp = datetime.now(UTC) - timedelta(days=day)
            connection.execute(
                "INSERT INTO cleanup_storage (id, timestamp, successful_bytes, failed_bytes, free_bytes,"
                " total_bytes) VALUES (?, ?, ?, ?, ?, ?)",
                (-day, f"{timestamp:%Y-%m-%d %H:%M:%S}", held * 3 // 4, held // 4, free, 252 * giga),
            )
    connection.close()


def _wait_for_daemon() -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{_URL}/healthz")
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    sys.exit("The daemon does not respond.")


def _take_screenshots(token: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, options in _SHOTS.items():
            page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
            page.goto(_URL)
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_selector("table.sortable")  # the first plan is shown
            page.screenshot(path=_IMAGES / f"dashboard-{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
