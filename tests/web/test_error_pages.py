"""Errors are pages for browsers, and problem details for programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.conftest import Site, create_store, site_of

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ERRORS = [
    ("GET", "/nothing", 404),
    ("GET", "/static/nothing", 404),
    ("GET", "/runs/nothing", 404),
    ("POST", "/jobs", 405),
    ("DELETE", "/", 405),
    ("GET", "/audit?before=x", 422),
    ("GET", "/plan?number=0", 422),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of(create_store(tmp_path_factory.mktemp("errors") / "store")) as site:
        yield site


@pytest.mark.parametrize(("method", "path", "status"), ERRORS)
def test_a_browser_gets_a_page_with_the_way_back(site: Site, method: str, path: str, status: int) -> None:
    answer = site.client.request(method, path, headers=site.bearer("read") | BROWSER)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert '<a href="/">' in answer.text
    assert ("Allow" in answer.headers) == (status == 405)
    assert "style-src" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
def test_a_refused_browser_gets_a_page(site: Site, headers: dict[str, str]) -> None:
    answer = site.client.post("/hold", data={"job": "a"}, headers=BROWSER | headers)
    assert answer.status_code in {403, 421}
    assert '<a href="/">' in answer.text


@pytest.mark.parametrize(
    "path", ["/api/cleanup/nothing", "/api/cleanup/runs/nothing", "/api/nothing", "/metrics/nothing"]
)
def test_the_api_answers_a_browser_with_problem_details(site: Site, path: str) -> None:
    answer = site.client.get(path, headers=site.bearer("read") | BROWSER)
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json()["status"] == 404


def test_a_program_gets_problem_details(site: Site) -> None:
    for accept in ("*/*", "application/json"):
        answer = site.client.get("/nothing", headers={"Accept": accept})
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_the_name_of_an_error_is_escaped_once(site: Site) -> None:
    answer = site.client.get("/runs/%3Ci%3E%5C", headers=site.bearer("read") | BROWSER)
    assert "<i>" not in answer.text
    assert "&lt;i&gt;\\\\." in answer.text


@pytest.mark.parametrize("path", ["/login", "/logout", "/stop"])
def test_the_address_of_a_form_leads_to_the_page_with_the_form(site: Site, path: str) -> None:
    answer = site.client.get(path, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
