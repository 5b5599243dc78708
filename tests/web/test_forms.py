"""The forms of the pages: what each does, who can send it, and what the audit log says then."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import Site, create_store, site_of

FORMS = ["/hold", "/release", "/restore", "/purge", "/clean", "/stop"]
NAME = '"><i>\udc80</i>\n'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_of(create_store(tmp_path / "store")) as site:
        yield site


def post(site: Site, path: str, scope: str = "clean", **data: str) -> Any:
    token = {"Authorization": f"Bearer {site.tokens[scope]}"}
    return site.client.post(path, data=data, headers=token, follow_redirects=False)


def log_in(site: Site, scope: str = "clean") -> None:
    """Let the browser have a session."""
    origin = {"Origin": "http://127.0.0.1"}
    assert site.client.post("/login", data={"token": site.tokens[scope]}, headers=origin).status_code == 200


def run_of(site: Site, answer: Any) -> str:
    """Return the page of a run that a form started, when another run can be started."""
    assert answer.status_code == 303, answer.text
    assert re.fullmatch(r"/runs/\S+", answer.headers["Location"])
    while asyncio.run(site.backend.progress()) is not None:  # it also sends the messages of the run
        pass
    return site.get(answer.headers["Location"])


def shown_at(form: str) -> str:
    """Return what the form of a purge says about its time."""
    (value,) = re.findall(r'name="shown_at" value="([^"]*)"', form)
    return str(value)


def audited(site: Site) -> list[str]:
    lines = (site.store.path / "logs" / "cleanup_audit.jsonl").read_text().splitlines()
    return [json.loads(line)["action"] for line in lines]


def test_a_job_is_held_and_released(site: Site) -> None:
    assert post(site, "/hold", job="a", reason="paper", days="2").status_code == 200
    (hold,) = site.json("/api/cleanup/holds")["holds"]
    assert (hold["job_id"], hold["reason"], hold["owner"]) == ("a", "paper", "clean")
    assert hold["until"] is not None
    assert "paper" in site.get("/job?job_id=a")
    assert post(site, "/release", job="a").status_code == 200
    assert post(site, "/release", job="a").status_code == 404
    assert site.json("/api/cleanup/holds")["holds"] == []
    assert [action for action in audited(site) if action != "http_refused"] == ["hold", "release"]


def test_a_job_of_any_name_is_held_with_the_form_of_its_page(site: Site) -> None:
    site.store.sql(
        "INSERT INTO jobs (id, workflow_type, status) VALUES (CAST(? AS TEXT), 'sol', 'odd')",
        NAME.encode("utf-8", "surrogateescape"),
    )
    page = site.get("/jobs?status=unknown", scope="clean")
    (key,) = re.findall(r'<input type="hidden" name="job" value="([^"]*)">', page)
    assert "<i>" not in page
    form = site.client.get("/hold", params={"job": unescape(key)}, headers=site.bearer("clean")).text
    (key,) = re.findall(r'<input type="hidden" name="job" value="([^"]*)">', form)
    assert post(site, "/hold", job=unescape(key)).status_code == 200
    assert [hold["job_id"] for hold in site.json("/api/cleanup/holds")["holds"]] == [NAME]


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"job": "nobody"}, 404),
        ({"job": ""}, 422),
        ({"job": "a", "days": "-1"}, 422),
        ({"job": "a", "days": "nan"}, 422),
        ({"job": "a", "days": "soon"}, 422),
        ({"job": "a", "reason": "x" * 1001}, 422),
    ],
)
def test_an_invalid_hold_is_refused_and_changes_nothing(
    site: Site, data: dict[str, str], status: int
) -> None:
    answer = post(site, "/hold", **data)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert site.json("/api/cleanup/holds")["holds"] == []


def test_a_run_is_started_after_a_page_that_shows_what_it_cleans(site: Site) -> None:
    form = site.get("/clean", scope="clean")
    assert "2 jobs" in form
    assert site.store.results("a").exists()
    page = run_of(site, post(site, "/clean"))
    assert site.store.cleaned() == {"a", "b"}
    assert "by clean" in page
    assert "http_cleanup" in audited(site)


def test_data_comes_back_from_the_trash_and_the_rest_is_purged(site: Site) -> None:
    run_of(site, post(site, "/clean"))
    assert post(site, "/restore", job="a").status_code == 200
    assert site.store.results("a").exists()
    assert post(site, "/restore", job="a").status_code == 409
    form = site.get("/purge", scope="clean")
    assert "1 item" in form
    run_of(site, post(site, "/purge", shown_at=shown_at(form)))
    assert site.json("/api/cleanup/trash")["trash"] == []
    assert site.store.results("a").exists()
    run = site.json("/api/cleanup/runs")["runs"][0]
    assert (run["trigger"], run["user"]) == ("trash", "clean")
    assert "http_purge" in audited(site)
    nothing = post(site, "/purge", shown_at=shown_at(form))  # no run is recorded, so there is no page of one
    assert (nothing.status_code, nothing.headers["location"]) == (303, "/trash")


@pytest.mark.slow
def test_a_purge_leaves_what_moved_to_the_trash_after_its_page_was_shown(site: Site) -> None:
    post(site, "/hold", job="b")
    run_of(site, post(site, "/clean"))
    site.store.sql("UPDATE cleanup_intents SET created_at = '2020-01-01 00:00:00'")
    form = site.get("/purge", scope="clean")
    assert "1 item" in form
    post(site, "/release", job="b")
    run_of(site, post(site, "/clean"))
    run_of(site, post(site, "/purge", shown_at=str(float(shown_at(form)) - 60)))  # the ledger has seconds
    assert [item["job_id"] for item in site.json("/api/cleanup/trash")["trash"]] == ["b"]


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "9e9", "-9e9"])
def test_a_purge_without_the_time_of_its_page_is_refused(site: Site, value: str) -> None:
    run_of(site, post(site, "/clean"))
    before = site.json("/api/cleanup/trash")
    assert post(site, "/purge", shown_at=value).status_code == 422
    assert site.json("/api/cleanup/trash") == before
    assert "http_purge" not in audited(site)


def test_in_dry_run_mode_the_forms_delete_nothing(tmp_path: Path) -> None:
    with site_of(create_store(tmp_path / "store"), "dry_run: true\n") as site:
        before = site.store.snapshot()
        for path in ("/clean", "/purge"):
            assert "disabled" in site.get(path, scope="clean")
            assert post(site, path, shown_at="0").status_code == 409
        assert site.store.snapshot() == before


def test_without_a_run_there_is_nothing_to_stop(site: Site) -> None:
    assert post(site, "/stop").status_code == 409
    token = site.bearer("clean")
    assert site.client.post("/api/cleanup/stop", headers=token).status_code == 409


@pytest.mark.slow
def test_only_the_run_that_the_page_showed_is_stopped(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    for number in range(60):
        store.job(f"old-{number}", files=3)
    # Without a grace it deletes, and takes the seconds that the requests need.
    with site_of(store, "performance: {max_deletes_per_second: 20}\n", grace_hours=0) as site:
        answer = post(site, "/clean")
        run_id = answer.headers["Location"].rpartition("/")[2]
        while f'name="run_id" value="{run_id}"' not in site.get(f"/runs/{run_id}", scope="clean"):
            pass
        other = post(site, "/stop", run_id="20240120T020001-3f2a")
        assert (other.status_code, 'role="alert"' in other.text) == (409, True)
        assert post(site, "/stop").status_code == 409
        body = {"run_id": "20240120T020001-3f2a"}
        api = site.client.post("/api/cleanup/stop", json=body, headers=site.bearer("clean"))
        assert api.status_code == 409
        assert "http_stop" not in audited(site)
        assert post(site, "/stop", run_id=run_id).status_code == 303
        run_of(site, answer)
        assert site.json(f"/api/cleanup/runs/{run_id}")["outcome"] == "interrupted"


def test_a_restore_that_fails_is_not_called_restored(site: Site) -> None:
    run_of(site, post(site, "/clean"))
    site.store.results("a").mkdir()
    answer = post(site, "/restore", job="a")
    assert (answer.status_code, 'role="alert"' in answer.text) == (409, True)
    assert any(item["job_id"] == "a" for item in site.json("/api/cleanup/trash")["trash"])


@pytest.mark.parametrize("path", ["/login", "/hold"])
def test_a_form_without_a_token_fills_no_log(site: Site, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level("INFO")
    caplog.clear()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = site.client.post(path, content=b"no form", headers=kind)
    assert answer.status_code == 422
    assert [each for each in caplog.records if "multipart" in each.name] == []


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("path", FORMS)
def test_forms_need_clean_scope(site: Site, path: str) -> None:
    before = site.store.snapshot()
    assert post(site, path, "read", job="a").status_code == 403
    assert site.client.post(path, data={"job": "a"}).status_code == 401
    assert site.client.post(path, headers={"Authorization": "Bearer wrong"}).status_code == 403
    if path != "/stop":
        site.get(path, status=403)
    assert site.store.snapshot() == before
    assert set(audited(site)) == {"http_refused"}


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("path", FORMS)
def test_a_page_of_another_site_sends_no_form(site: Site, path: str) -> None:
    log_in(site)
    before = site.store.snapshot()
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ):
        answer = site.client.post(path, data={"job": "a"}, headers=headers, follow_redirects=False)
        assert answer.status_code == 403
    assert site.store.snapshot() == before


def test_a_session_sends_forms(site: Site) -> None:
    log_in(site)
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert site.client.post("/hold", data={"job": "a"}, headers=headers).status_code == 200
