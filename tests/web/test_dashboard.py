"""The dashboard in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cleanup.conftest import JobStore
from tests.requirements import find_program, needs
from tests.web.conftest import RunningDaemon, start

CHROMIUM = find_program("chromium")
pytestmark = needs("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def log_in(
    browser: Browser,
    daemon: RunningDaemon,
    scope: str = "clean",
    errors: list[str] | None = None,
    **options: Any,
) -> Page:
    page = browser.new_context(**options).new_page()
    answer = page.goto(daemon.url)
    assert answer is not None
    assert answer.status == 401
    if errors is not None:
        page.on("pageerror", lambda error: errors.append(str(error)))
    page.get_by_label("Token").fill(daemon.tokens[scope])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Next run", exact=True)).to_be_visible()
    return page


@pytest.mark.slow
def test_a_user_previews_cleans_watches_and_restores(
    browser: Browser, daemon_with_trash: RunningDaemon
) -> None:
    daemon = daemon_with_trash
    errors: list[str] = []
    page = log_in(browser, daemon, errors=errors)
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("status")).to_contain_text("2 jobs (1 successful, 1 failed)")
    page.get_by_role("button", name="Clean now …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 jobs")
    dialog.get_by_role("button", name="Cancel").click()
    assert daemon.store.results("a").exists()
    page.get_by_role("button", name="Clean now …").click()
    dialog.get_by_role("button", name="Clean now").click()
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"Run \S+ .*: success"), timeout=20_000)
    assert daemon.store.cleaned() == {"a", "b"}
    run = daemon.get("/api/cleanup/runs")["runs"][0]["run_id"]
    expect(page.get_by_role("link", name=run)).to_be_visible()
    page.get_by_role("button", name="Restore … a").click()
    dialog.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("status")).to_contain_text("results/a/", timeout=20_000)
    assert daemon.store.results("a").exists()
    expect(page.get_by_role("button", name="Release a")).to_be_visible()
    assert errors == []
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()


@pytest.mark.slow
def test_a_user_with_read_scope_has_no_buttons_that_change(browser: Browser, daemon: RunningDaemon) -> None:
    page = log_in(browser, daemon, "read")
    expect(page.get_by_role("button", name="Preview")).to_be_visible()
    expect(page.get_by_role("button", name="Clean now …")).to_be_hidden()


def test_the_dashboard_works_without_javascript(browser: Browser, daemon: RunningDaemon) -> None:
    daemon.get("/api/cleanup/plan")
    page = log_in(browser, daemon, java_script_enabled=False)
    expect(page.get_by_role("rowheader", name="a", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Clean now …")).to_be_hidden()


@pytest.mark.slow
def test_a_job_whose_name_is_markup_can_be_held_and_released(browser: Browser, store: JobStore) -> None:
    name = "\"><img src=x onerror=alert(1)>'&amp;{{7}}"
    store.job(name)
    daemon = start(store)
    daemon.get("/api/cleanup/plan")
    errors: list[str] = []
    page = log_in(browser, daemon, errors=errors)
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name)).get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text(name)
    page.get_by_role("dialog").get_by_role("button", name="Hold").click()
    page.get_by_role("button", name="Release").click()
    assert [hold["job_id"] for hold in daemon.get("/api/cleanup/holds")["holds"]] == [name]
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    expect(page.get_by_role("button", name="Release")).to_have_count(0)
    assert page.locator("img[src=x]").count() == 0
    assert errors == []
    page.context.close()
    daemon.stop()


@pytest.mark.slow
def test_a_wrong_token_shows_an_error(browser: Browser, daemon: RunningDaemon) -> None:
    page = browser.new_page()
    page.goto(daemon.url)
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()


@pytest.mark.slow
def test_the_table_sorts_by_keyboard(browser: Browser, daemon: RunningDaemon) -> None:
    daemon.request("POST", "/api/cleanup/holds", {"job_id": "x"})
    daemon.get("/api/cleanup/plan")
    page = log_in(browser, daemon)
    head = page.get_by_role("button", name="Job", exact=True)
    head.focus()
    page.keyboard.press("Enter")
    rows = page.locator("table.sortable tbody th")
    assert rows.all_inner_texts() == ["a", "b"]
    page.keyboard.press("Enter")
    assert rows.all_inner_texts() == ["b", "a"]
    expect(page.get_by_role("columnheader", name="Job")).to_have_attribute("aria-sort", "descending")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
    ],
    ids=["light", "dark", "phone"],
)
def test_the_dashboard_is_accessible(
    browser: Browser, daemon_with_trash: RunningDaemon, options: dict[str, Any]
) -> None:
    daemon = daemon_with_trash
    daemon.request("POST", "/api/cleanup")
    daemon.request("POST", "/api/cleanup/holds", {"job_id": "young"})
    daemon.request("POST", "/api/cleanup", {"dry_run": True, "success_retention_hours": 1})
    page = log_in(browser, daemon, **options)
    expect(page.locator("#h-plan + p.empty")).to_be_visible()
    expect(page.locator("main[data-plan-pending]")).to_have_count(0)
    violations = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in violations] == []
    # Nothing is wider than the screen, and nothing scrolls sideways.
    too_wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => "
        "e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth + 1 && "
        "getComputedStyle(e).overflowX === 'auto').map(e => e.outerHTML.slice(0, 200))"
    )
    assert too_wide == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
