"""The dashboard in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cleanup.conftest import JobStore
from tests.requirements import find_program, needs
from tests.web.conftest import RunningDaemon, eventually, start

expect.set_options(timeout=60_000)  # of a busy machine
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
    if options.get("java_script_enabled", True):  # then the page loads itself until it is complete
        expect(page.locator("main[data-plan-pending]")).to_have_count(0)
    return page


@pytest.mark.slow
@pytest.mark.parametrize("has_javascript", [True, False], ids=["with script", "without"])
def test_a_user_holds_cleans_restores_and_purges(
    browser: Browser, daemon_with_trash: RunningDaemon, has_javascript: bool
) -> None:
    daemon = daemon_with_trash
    daemon.get("/api/cleanup/plan")
    errors: list[str] = []
    page = log_in(browser, daemon, errors=errors, java_script_enabled=has_javascript)
    page.get_by_role("button", name="Hold … b").click()
    page.get_by_label("Reason").fill("paper")
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("link", name="b", exact=True).click()
    expect(page.get_by_text("paper").first).to_be_visible()
    page.get_by_role("button", name="Release …").click()
    page.get_by_role("button", name="Release").click()
    page.get_by_role("link", name="Dashboard").first.click()
    page.get_by_role("button", name="Clean now …").click()
    assert daemon.store.results("a").exists()
    page.get_by_role("button", name="Clean now").click()
    run = page.url.rpartition("/")[2]
    eventually(lambda: check_finished(daemon, run))
    assert daemon.store.cleaned() == {"a", "b"}
    page.reload()
    expect(page.get_by_text("success", exact=True)).to_be_visible()
    page.get_by_role("link", name="Trash", exact=True).click()
    page.get_by_role("button", name="Restore … a").click()
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("status")).to_contain_text("results/a/")
    assert daemon.store.results("a").exists()
    page.get_by_role("link", name="Trash", exact=True).first.click()
    page.get_by_role("button", name="Purge …").click()
    page.get_by_role("button", name="Purge").click()
    run = page.url.rpartition("/")[2]
    eventually(lambda: check_finished(daemon, run))
    assert daemon.get("/api/cleanup/trash")["trash"] == []
    assert errors == []
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.context.close()


def check_finished(daemon: RunningDaemon, run_id: str) -> None:
    assert daemon.get(f"/api/cleanup/runs/{run_id}")["outcome"] == "success"


@pytest.mark.slow
def test_the_dashboard_follows_a_run_of_others(browser: Browser, store: JobStore) -> None:
    for number in range(300):
        store.job(f"old-{number}", files=3)
    daemon = start(store, "performance: {batch_size: 10, max_deletes_per_second: 50}\n")
    page = log_in(browser, daemon)
    expect(page.get_by_role("button", name="Clean now …")).to_be_enabled()
    daemon.request("POST", "/api/cleanup", Prefer="respond-async")
    expect(page.get_by_role("progressbar")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("button", name="Clean now …")).to_be_disabled()
    page.get_by_role("button", name="Stop the run").click()
    expect(page.get_by_text("interrupted").first).to_be_visible(timeout=20_000)
    assert len(store.cleaned()) < 300
    page.context.close()
    daemon.stop()


@pytest.mark.slow
def test_a_user_with_read_scope_has_no_buttons_that_change(browser: Browser, daemon: RunningDaemon) -> None:
    daemon.get("/api/cleanup/plan")
    page = log_in(browser, daemon, "read")
    for path in ("/", "/jobs", "/job?job_id=a", "/plan", "/trash"):
        page.goto(daemon.url + path)
        buttons = page.locator("main button:not(.sort):not([role=search] button)")
        assert buttons.all_inner_texts() == [], path
    page.context.close()


@pytest.mark.slow
def test_a_wrong_token_shows_an_error(browser: Browser, daemon: RunningDaemon) -> None:
    page = browser.new_page()
    page.goto(daemon.url)
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()


@pytest.mark.slow
def test_the_table_sorts_by_keyboard(browser: Browser, daemon: RunningDaemon) -> None:
    daemon.request("POST", "/api/cleanup/holds", {"job_id": "live"})
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


PAGES = ["/", "/jobs", "/job?job_id=young", "/plan", "/trash", "/runs", "/audit", "/config"]
PAGES += ["/hold?job=a", "/release?job=a", "/restore?job=a", "/purge", "/clean", "/job?job_id=nobody"]
PAGES += ["/nothing", "/plan?number=0", "/job?job_id=%00", "/jobs?show=attention"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light", "viewport": {"width": 1440, "height": 900}},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
    ],
    ids=["light", "dark", "phone"],
)
def test_all_pages_are_accessible(
    browser: Browser, daemon_with_trash: RunningDaemon, options: dict[str, Any]
) -> None:
    daemon = daemon_with_trash
    run = daemon.request("POST", "/api/cleanup").json()["run_id"]
    daemon.request("POST", "/api/cleanup/holds", {"job_id": "young"})
    daemon.request("POST", "/api/cleanup", {"dry_run": True, "success_retention_hours": 1})
    page = log_in(browser, daemon, **options)
    expect(page.locator("#h-plan + p.empty")).to_be_visible()
    expect(page.locator("main[data-plan-pending]")).to_have_count(0)
    for path in [*PAGES, f"/runs/{run}"]:
        page.goto(daemon.url + path)
        check_accessible(page)
    results = []
    for path, status in submit_forms(page, daemon):
        check_accessible(page)
        results.append((path, status))
    assert results == [(path, status) for path, _, status in FORMS]
    page.context.close()


FORMS = [
    ("/hold?job=a", "Hold", 200),
    ("/hold?job=nobody", "Hold", 404),
    ("/release?job=a", "Release", 200),
    ("/release?job=a", "Release", 404),
    ("/restore?job=a", "Restore", 200),
    ("/restore?job=b", "Restore", 409),
    ("/purge", "Purge", 200),
    ("/stop", "", 409),
    ("/login", "", 403),
]
"""The pages with a form, their button, and the status of what follows; without a button, it is sent alone."""
SEND = """path => {
  const form = document.createElement('form');
  form.method = 'post';
  form.action = path;
  document.body.append(form);
  form.submit();
}"""


def submit_forms(page: Page, daemon: RunningDaemon) -> Iterator[tuple[str, int]]:
    """Send each form, so that the page shows its result, and yield its address and the status."""
    daemon.store.results("b").mkdir(exist_ok=True)
    for path, name, _ in FORMS:
        if name:
            page.goto(daemon.url + path)
        with page.expect_navigation() as navigation:
            if name:
                page.get_by_role("button", name=name, exact=True).click()
            else:
                page.evaluate(SEND, path)
        if path == "/purge":  # the page of a run loads itself again when the run ends
            run = page.url.rpartition("/")[2]
            eventually(partial(check_finished, daemon, run))
            page.goto(daemon.url + "/runs/" + run)
        yield path, navigation.value.status


def check_accessible(page: Page) -> None:
    for details in page.locator("details").all():
        details.evaluate("e => e.open = true")
    violations = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in violations] == [], page.url
    # Nothing is wider than the screen, and nothing scrolls sideways.
    too_wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => "
        "e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth + 1 && "
        "getComputedStyle(e).overflowX === 'auto').map(e => e.outerHTML.slice(0, 200))"
    )
    assert too_wide == [], page.url
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url
    outside = page.evaluate(
        "[...document.querySelectorAll('.card *')].filter(e => e.checkVisibility() && "
        "e.getBoundingClientRect().right > e.closest('.card').getBoundingClientRect().right"
        ").map(e => e.outerHTML.slice(0, 200))"
    )
    assert outside == [], page.url
