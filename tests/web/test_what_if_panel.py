"""What-if over HTTP and on the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.report.what_if import as_document, compare_retention
from eemtcleanupd.web.what_if_panel import HEIGHT, WIDTH, panel_values
from tests.cleanup.conftest import JobStore
from tests.requirements import find_program, needs
from tests.web.conftest import RunningDaemon, create_store, start

expect.set_options(timeout=60_000)  # of a busy machine
pytestmark = pytest.mark.xdist_group("what-if")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon that has cleaned its store, so that the sizes of its jobs are known."""
    store: JobStore = create_store(tmp_path_factory.mktemp("what-if") / "store")
    store.run(safety__min_idle_minutes=60)
    daemon = start(store)
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def pages(cleaned: RunningDaemon) -> Iterator[Any]:
    """Return a function that opens the dashboard in a browser without JavaScript."""
    cleaned.get("/api/cleanup/what-if")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_program("chromium"), args=["--no-sandbox"])

        def open_page(**options: Any) -> Page:
            headers = {"Authorization": f"Bearer {cleaned.tokens['read']}"}
            page = browser.new_context(extra_http_headers=headers, **options).new_page()
            page.goto(cleaned.url)
            return page

        yield open_page
        browser.close()


def test_the_route_returns_both_curves(cleaned: RunningDaemon) -> None:
    found = cleaned.get("/api/cleanup/what-if")
    for name, hours in (("successful", 168), ("failed", 12)):
        (configured,) = (point for point in found[name]["points"] if point["is_configured"])
        assert configured["retention_hours"] == found[name]["retention_hours"] == hours
        assert len(found[name]["line"]) > len(found[name]["points"])
    points = {point["retention_hours"]: point for point in found["successful"]["points"]}
    assert points[336]["kept"]["bytes"] > points[168]["kept"]["bytes"] > points[6]["kept"]["bytes"]
    assert points[6]["freed_by_next_run"]["bytes"] == points[168]["kept"]["bytes"]


@pytest.mark.parametrize(("token", "status"), [("read", 200), ("clean", 200), (None, 401), ("wrong", 403)])
def test_the_route_needs_read_scope(cleaned: RunningDaemon, token: str | None, status: int) -> None:
    assert cleaned.request("GET", "/api/cleanup/what-if", token=token).status_code == status


@pytest.mark.slow
@needs("chromium")
def test_table_and_curve_are_there_without_javascript(cleaned: RunningDaemon, pages: Any) -> None:
    page = pages(java_script_enabled=False)
    panel = page.locator(".what-if")
    found = cleaned.get("/api/cleanup/what-if")
    expect(panel).to_contain_text(found["successful"]["summary"])
    expect(panel.locator("table").first.locator("tbody tr")).to_have_count(len(found["successful"]["points"]))
    expect(panel.locator("tr.configured")).to_have_count(2)
    assert panel.get_by_role("img").count() == 2
    assert panel.locator("svg circle title").first.text_content() == "6 h: 0 B"
    page.context.close()


@needs("chromium")
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_the_panel_is_accessible_and_fits_the_screen(pages: Any, scheme: str, width: int) -> None:
    page = pages(color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(page.locator("main[data-plan-pending]")).to_have_count(0)  # such a page loads itself again
    expect(page.locator(".what-if table").first).to_be_visible()
    violations = Axe().run(page, context=".what-if").response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    texts = page.locator(".what-if svg text")
    boxes = [box for index in range(texts.count()) if (box := texts.nth(index).bounding_box()) is not None]
    assert min(box["x"] for box in boxes) >= 0
    assert max(box["x"] + box["width"] for box in boxes) <= width
    page.context.close()


@pytest.mark.parametrize("hours", [0, 0.25, 6, 1_000_000])
def test_any_retention_has_a_place_on_the_chart(tmp_path: Path, hours: float) -> None:
    store = create_store(tmp_path / "store")
    store.run(retention__successful_jobs__hours=1_000_000, retention__failed_jobs__hours=1_000_000)
    config = store.config(retention__successful_jobs__hours=hours, retention__failed_jobs__hours=hours)
    document = as_document(compare_retention(config, lambda: store.now, NullHooks()))
    for curve in panel_values(json.dumps(document).encode())["curves"]:
        marks = curve["chart"]["marks"]
        assert [mark["is_configured"] for mark in marks].count(True) == 1
        assert all(0 <= mark["x"] <= WIDTH and 0 <= mark["y"] <= HEIGHT for mark in marks)


@pytest.mark.slow
def test_before_the_first_run_the_panel_claims_nothing(daemon: RunningDaemon) -> None:
    assert daemon.get("/api/cleanup/what-if")["successful"]["points"] == []
    answer = daemon.request("GET", "/", token="read")
    assert answer.status_code == 200
    assert "h-what-if" in answer.text
    assert "chart" not in answer.text.partition("h-what-if")[2].partition("</section>")[0]
