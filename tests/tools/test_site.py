"""The documentation site: complete, without broken links, with a search, and independent of other hosts."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page as BrowserPage, expect, sync_playwright

expect.set_options(timeout=60_000)  # of a busy machine
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.xdist_group("docs site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("docs") / "site"
    command: list[str | Path] = [sys.executable, "-m", "tools.site", site]
    plain = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return site


class Page(HTMLParser):
    """The links of a page, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if "href" in given:
            loaded = tag == "link" and given.get("rel") not in {"prev", "next", "canonical"}
            (self.loads if loaded else self.links).append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])


@pytest.mark.slow
def test_every_link_has_a_target_and_no_page_loads_from_another_host(site: Path) -> None:
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    lost = []
    for path, page in pages.items():
        foreign = [load for load in page.loads if urlsplit(load).netloc]
        lost += [f"{path.relative_to(site)}: {load} (another host)" for load in foreign]
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":  # a page for any address
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                lost.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                lost.append(f"{path.relative_to(site)}: {link} (no such anchor)")
    assert lost == []
    assert len(pages) > 20


def test_every_document_is_in_the_navigation() -> None:
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    named = re.findall(r'= "([\w/.-]+\.md)"', text)
    assert tomllib.loads(text)["project"]["nav"]
    there = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))}
    assert there - {*named} == set(), "give them a place"
    assert sorted(named) == sorted(there)


def test_no_picture_loads_from_another_host() -> None:
    for picture in (ROOT / "docs/images").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert re.findall(r"""(?:url\(|href=|src=)["']?(?:https?:)?//""", text) == [], picture


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
        pass


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def search(tab: BrowserPage, address: str, words: str) -> Locator:
    """Search for words on the start page; return the results, of which the first is there."""
    with tab.expect_response(re.compile("/workers/search"), timeout=60_000):  # now the button works
        tab.goto(address)
    tab.get_by_role("button", name="Search").click()
    tab.get_by_role("combobox", name="Search").fill(words, timeout=20_000)
    results = tab.locator("[role=option][href*='?h=']")
    expect(results.first).to_be_attached(timeout=20_000)
    return results


@pytest.mark.slow
def test_the_search_finds_a_key_without_requests_to_other_hosts(browser: Browser, served: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    search(page, served, "grace_hours")
    page.locator('[role=option][href*="configuration-keys.html"]').first.click(timeout=20_000)
    expect(page.locator("article")).to_contain_text("trash.grace_hours")
    page.close()
    assert errors == []
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {
        "127.0.0.1"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "pages"),
    [
        ("install", "install-and-upgrade"),
        ("upgrade", "install-and-upgrade"),
        ("uninstall", "uninstall"),
        ("change retention", "change-the-retention"),
        ("undelete", "restore-a-job"),
        ("restore", "restore-a-job"),
        ("free space", "free-space-now"),
        ("disk full", "troubleshooting|free-space-now"),
        ("permission denied", "troubleshooting"),
        ("database is locked", "troubleshooting"),
        ("Slack", "notifications"),
        ("cron", "cron-and-timers"),
        ("systemd", "run-the-daemon|cron-and-timers"),
        ("Docker", "docker"),
        ("PostgreSQL", "postgresql"),
    ],
)
def test_the_search_finds_the_page_for_a_task_first(
    browser: Browser, served: str, words: str, pages: str
) -> None:
    page = browser.new_page()
    first = search(page, served, words).first
    expect(first).to_have_attribute("href", re.compile(rf"docs/how-to/(?:{pages})\.html\?"))
    page.close()
