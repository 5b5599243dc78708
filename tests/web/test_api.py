"""The HTTP contract, against a daemon that lives."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import threading
from pathlib import Path

import pytest
import requests
import trustme

from tests.cleanup.conftest import JobStore
from tests.web.conftest import Site, await_listening, eemtcleanupd, end, free_port, start

WRONG = "eemt_wrong"


def test_a_cleanup_answers_as_the_document_says(site: Site) -> None:
    answer = site.ask("POST", "/api/cleanup")
    assert answer.status_code == 200
    told = answer.json()
    assert told["success"] is True
    assert told["cleaned_jobs"] == {"successful": 1, "failed": 1}
    assert set(told["space_freed"]) == {"bytes", "human_readable"}
    assert told["space_freed"]["bytes"] > 0
    assert {job["job_id"] for job in told["details"]} == {"a", "b"}
    for job in told["details"]:
        assert {"job_id", "status", "age_days", "space_freed"} <= set(job)
    assert site.store.cleaned() == {"a", "b"}
    assert site.store.results("young").exists()
    run = site.get(f"/api/cleanup/runs/{told['run_id']}")
    assert (run["trigger"], run["successful"], run["failed"]) == ("api", 1, 1)
    assert {job["job_id"] for job in run["details"]} == {"a", "b"}
    assert site.get("/api/cleanup/runs")["runs"][0]["run_id"] == told["run_id"]
    assert '"user": "clean"' in site.audit()


def test_a_dry_run_and_the_plan_say_the_same_and_change_nothing(site: Site) -> None:
    before = site.store.snapshot()
    dry = site.ask("POST", "/api/cleanup", {"dry_run": True}).json()
    plan = site.get("/api/cleanup/plan")
    assert dry["details"] == plan["details"]
    assert {job["job_id"] for job in plan["details"]} == {"a", "b"}
    assert plan["dry_run"] is True
    assert site.store.snapshot() == before


def test_the_body_gives_other_hours_for_this_run_alone(site: Site) -> None:
    told = site.ask(
        "POST", "/api/cleanup", {"success_retention_hours": 1, "failed_retention_hours": 9000}
    ).json()
    assert {job["job_id"] for job in told["details"]} == {"a", "young"}
    assert site.store.results("b").exists()
    told = site.ask("POST", "/api/cleanup").json()
    assert {job["job_id"] for job in told["details"]} == {"b"}


def test_a_run_that_is_not_waited_for_has_its_own_address(site: Site) -> None:
    answer = site.ask("POST", "/api/cleanup", Prefer="respond-async")
    assert answer.status_code == 202
    url = answer.headers["Location"]
    assert answer.json()["url"] == url
    while site.get(url)["finished_at"] is None:
        pass
    assert site.get(url)["outcome"] == "success"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"success_retention_hours": -1}, "success_retention_hours"),
        ({"failed_retention_hours": "12"}, "failed_retention_hours"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"dryrun": True}, "dryrun"),
        ([], "body"),
    ],
)
def test_bad_input_names_the_field_and_changes_nothing(site: Site, body: object, field: str) -> None:
    before = site.store.snapshot()
    answer = site.ask("POST", "/api/cleanup", body)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [each["field"] for each in answer.json()["errors"]] == [field]
    assert site.store.snapshot() == before


READING = [
    "/api/cleanup/plan",
    "/api/cleanup/status",
    "/api/cleanup/runs",
    "/api/cleanup/runs/x",
    "/api/cleanup/events",
]
READING += ["/api/cleanup/holds", "/api/cleanup/trash", "/metrics", "/"]


@pytest.mark.parametrize("path", READING)
def test_reading_needs_a_token(site: Site, path: str) -> None:
    without = site.ask("GET", path, token=None)
    assert without.status_code == 401
    wrong = site.ask("GET", path, token=WRONG)
    assert wrong.status_code == 403
    assert [each["details"]["request"] for each in site.refusals()] == [f"GET {path}"] * 2
    assert {each["ip_address"] for each in site.refusals()} == {"127.0.0.1"}


def test_an_answer_that_is_kept_is_for_those_who_may_read(site: Site) -> None:
    paths = [f"/api/cleanup/{name}" for name in ("status", "runs", "plan", "holds", "trash")] + ["/metrics"]
    first = {path: site.ask("GET", path) for path in paths}
    again = {path: site.ask("GET", path, token="read") for path in paths}
    assert {path: answer.status_code for path, answer in again.items()} == dict.fromkeys(paths, 200)
    kinds = [
        {path: answer.headers["Content-Type"] for path, answer in each.items()} for each in (first, again)
    ]
    assert kinds[0] == kinds[1]
    assert all("default-src 'none'" in each.headers["Content-Security-Policy"] for each in again.values())
    site.revoke("read")
    codes = {site.ask("GET", path, token=token).status_code for path in paths for token in ("read", WRONG)}
    assert codes == {403}
    assert {site.ask("GET", path, token=None).status_code for path in paths} == {401}
    assert len(site.refusals()) == 3 * len(paths)


CHANGING = {
    "/api/cleanup": {},
    "/api/cleanup/holds": {"job_id": "a"},
    "/api/cleanup/holds/release": {"job_id": "a"},
    "/api/cleanup/trash/restore": {"job_id": "a"},
}


@pytest.mark.parametrize("path", CHANGING)
def test_changing_needs_a_token_that_may(site: Site, path: str) -> None:
    eemtcleanupd(site.store, "token", "add", "old", "--scope", "clean", "--days", "0")
    before = site.store.snapshot()
    codes = [
        site.ask("POST", path, CHANGING[path], token=token).status_code for token in (None, WRONG, "read")
    ]
    assert codes == [401, 403, 403]
    assert site.store.snapshot() == before
    assert len(site.refusals()) == 3


def test_an_expired_or_revoked_token_is_refused_at_once(site: Site) -> None:
    old = eemtcleanupd(site.store, "token", "add", "old", "--scope", "clean", "--days", "0").split()[-1]
    assert site.ask("POST", "/api/cleanup", token=old).status_code == 403
    assert site.refusals()[-1]["user"] == "old"
    eemtcleanupd(site.store, "token", "revoke", "read")
    assert site.ask("GET", "/api/cleanup/status", token="read").status_code == 403


def test_only_health_is_open(site: Site) -> None:
    assert site.ask("GET", "/healthz", token=None).json() == {"status": "ok"}
    # As a cluster's probes ask: by the pod's address.
    for address in ("10.1.2.3:5001", "[fd00::7]:5001"):
        assert site.ask("GET", "/healthz", token=None, Host=address).status_code == 200


def test_a_foreign_host_is_refused_and_written_down(site: Site) -> None:
    before = site.store.snapshot()
    answer = site.ask("POST", "/api/cleanup", Host="evil.example")
    assert answer.status_code == 421
    assert site.store.snapshot() == before
    assert "evil.example" in site.refusals()[-1]["details"]["reason"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_hundred_megabytes_is_refused(site: Site, *, chunked: bool) -> None:
    before = site.store.snapshot()

    def body() -> object:
        chunk = b" " * 100_000
        return (chunk for _ in range(1000)) if chunked else chunk * 1000

    with contextlib.suppress(requests.ConnectionError):  # it need not read what it does not want
        answer = requests.post(
            f"{site.url}/api/cleanup",
            data=body(),  # type: ignore[arg-type]
            headers={"Authorization": f"Bearer {site.tokens['clean']}"},
            timeout=60,
        )
        assert answer.status_code == 413
    assert "at most 65536 bytes" in site.refusals()[-1]["details"]["reason"]
    assert site.store.snapshot() == before


def test_who_is_refused_often_waits_and_others_do_not(site: Site) -> None:
    codes = [site.ask("GET", "/api/cleanup/status", token=WRONG).status_code for _ in range(65)]
    assert codes[0] == 403
    assert codes[-1] == 429
    assert len(site.refusals()) == 61
    assert site.ask("GET", "/api/cleanup/status").status_code == 200


def test_no_token_is_in_a_log_or_in_the_file_of_tokens(site: Site) -> None:
    site.ask("POST", "/api/cleanup")
    site.ask("GET", "/api/cleanup/status", token=WRONG)
    written = b"".join(path.read_bytes() for path in site.store.path.rglob("*") if path.is_file())
    for token in (*site.tokens.values(), WRONG):
        assert token.encode() not in written


def test_answers_carry_the_headers_of_a_careful_site(site: Site) -> None:
    headers = site.ask("GET", "/").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "server" not in {name.lower() for name in headers}


def test_a_hold_keeps_a_job_until_it_is_released(site: Site) -> None:
    assert site.ask("POST", "/api/cleanup/holds", {"job_id": "a", "reason": "paper"}).status_code == 201
    (held,) = site.get("/api/cleanup/holds")["holds"]
    assert (held["job_id"], held["reason"], held["owner"]) == ("a", "paper", "clean")
    assert [job["job_id"] for job in site.ask("POST", "/api/cleanup").json()["details"]] == ["b"]
    assert site.ask("POST", "/api/cleanup/holds/release", {"job_id": "a"}).status_code == 200
    assert site.ask("POST", "/api/cleanup/holds/release", {"job_id": "a"}).status_code == 404
    assert [job["job_id"] for job in site.ask("POST", "/api/cleanup").json()["details"]] == ["a"]


def test_a_hold_that_comes_too_late_says_so(site: Site) -> None:
    def warning(job_id: str) -> str | None:
        answer: dict[str, str | None] = site.ask("POST", "/api/cleanup/holds", {"job_id": job_id}).json()
        return answer["warning"]

    assert warning("b") is None
    site.ask("POST", "/api/cleanup")
    assert warning("a") == "the data of job a has been cleaned already"
    assert warning("nobody") == "there is no job nobody in the database: is that its id?"


def test_a_hold_is_set_though_the_jobs_cannot_be_read_and_says_so(site: Site) -> None:
    with contextlib.closing(sqlite3.connect(site.store.path / "jobs.db")) as database:
        database.execute("ALTER TABLE jobs RENAME TO moved")
    answer = site.ask("POST", "/api/cleanup/holds", {"job_id": "b"})
    assert (answer.status_code, answer.json()["job_id"]) == (201, "b")
    assert "has no table jobs" in answer.json()["warning"]
    assert [hold["job_id"] for hold in site.get("/api/cleanup/holds")["holds"]] == ["b"]


def test_what_is_in_the_trash_comes_back(site_with_trash: Site) -> None:
    site = site_with_trash
    site.ask("POST", "/api/cleanup")
    whole, part = site.get("/api/cleanup/trash"), site.get("/api/cleanup/trash?limit=1")
    assert {each["job_id"] for each in whole["trash"]} == {"a", "b"}
    assert (whole["more"], len(part["trash"]), part["more"]) == (False, 1, True)
    assert not site.get("/api/cleanup/trash?limit=2")["more"]
    told = site.ask("POST", "/api/cleanup/trash/restore", {"job_id": "a"}).json()
    assert sorted(told["restored"]) == ["results/a/", "uploads/dem.tif"]
    assert site.store.results("a").exists()
    assert site.ask("POST", "/api/cleanup/trash/restore", {"job_id": "a"}).status_code == 409


def test_metrics_are_those_of_the_document(site: Site) -> None:
    site.ask("POST", "/api/cleanup")
    text = site.ask("GET", "/metrics").text
    assert re.search(r"^eemt_cleanup_runs_total 1\.0$", text, re.MULTILINE)
    assert 'eemt_jobs_cleaned_total{status="completed"} 1.0' in text


def test_the_page_of_a_run_says_what_it_did(site: Site) -> None:
    run_id = site.ask("POST", "/api/cleanup").json()["run_id"]
    page = site.ask("GET", f"/runs/{run_id}")
    assert page.status_code == 200
    for words in ("Successful jobs", "dem.tif", "completed", "failed", "cleaned"):
        assert words in page.text
    assert site.ask("GET", "/runs/nothing").status_code == 404
    assert site.ask("GET", f"/runs/{run_id}", token=None).status_code == 401


def test_progress_is_told_to_the_end(store: JobStore) -> None:
    for job in range(30):
        store.job(f"slow{job}", files=4)
    site = start(store, "performance: {max_deletes_per_second: 60, batch_size: 2}\n")
    headers = {"Authorization": f"Bearer {site.tokens['read']}"}
    url = f"{site.url}/api/cleanup/events"
    with requests.get(url, headers=headers, stream=True, timeout=60) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        assert next(lines) == "event: idle"
        assert site.ask("POST", "/api/cleanup", Prefer="respond-async").status_code == 202
        assert site.ask("POST", "/api/cleanup").status_code == 409
        told: list[dict[str, int]] = []
        for line in lines:
            if line == "event: progress":
                told.append(json.loads(next(lines).removeprefix("data: ")))
            elif line == "event: idle" and told:
                break
    done = [each["jobs_done"] for each in told]
    assert done == sorted(done)
    assert {each["jobs_total"] for each in told} >= {32}
    assert max(each["bytes_freed"] for each in told) > 0
    end(site)


def test_progress_is_told_as_it_goes(site: Site) -> None:
    told = requests.get(
        f"{site.url}/api/cleanup/events?once=true",
        headers={"Authorization": f"Bearer {site.tokens['read']}"},
        timeout=30,
    )
    assert told.headers["Content-Type"].startswith("text/event-stream")
    assert told.text == "event: idle\ndata: null\n\n"


def test_a_second_run_is_a_conflict(site: Site) -> None:
    lock = site.store.path / "jobs.db.eemtcleanupd.lock"
    import fcntl

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = site.ask("POST", "/api/cleanup")
    assert answer.status_code == 409
    assert site.ask("POST", "/api/cleanup").status_code == 200


def test_many_at_once_never_run_twice(site: Site) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(site.ask("POST", "/api/cleanup").status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 409}
    assert 200 in codes
    cleaned = site.store.sql("SELECT job_id FROM cleanup_log WHERE action = 'cleaned'")
    assert sorted(str(row[0]) for row in cleaned) == ["a", "b"]


def test_without_a_token_it_starts_on_nothing_but_a_socket(tmp_path: Path) -> None:
    import subprocess
    import sys

    store = JobStore(tmp_path / "bare")
    (store.path / "cleanup_config.yaml").write_text(
        "api: {enabled: true, listen: '127.0.0.1:1', tokens_file: t}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "eemtcleanupd", "run"],
        cwd=store.path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "token add NAME --scope clean" in done.stderr


def test_a_unix_socket_is_for_those_who_may_open_it(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "s")
    store.job("a")
    address = tmp_path / "api.sock"
    site = start(store, listen=f"unix:{address}")
    try:
        request = b"GET /api/cleanup/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n"

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(address))

        await_listening(connect)
        assert address.stat().st_mode & 0o777 == 0o660
        answers = []
        for more in (b"", f"Authorization: Bearer {site.tokens['read']}\r\n".encode()):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(address))
                client.sendall(request % more)
                answers.append(client.makefile("rb").read().split()[1])
        assert answers == [b"401", b"200"]
        file = store.path / "cleanup_config.yaml"
        file.write_text(file.read_text().replace("enabled: true", "enabled: true, socket_mode: '0600'"))
        eemtcleanupd(store, "reload")
        assert address.stat().st_mode & 0o777 == 0o600
    finally:
        site.process.terminate()
        assert site.process.wait(30) == 0
    assert not address.exists()


def test_a_reload_moves_it_to_another_address_or_leaves_it(site: Site) -> None:
    file = site.store.path / "cleanup_config.yaml"
    old, port = file.read_text(), free_port()
    file.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1x", old))
    assert site.ask("GET", "/api/cleanup/status").status_code == 200
    file.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", old))
    eemtcleanupd(site.store, "reload")
    site.url = f"http://127.0.0.1:{port}"
    assert site.ask("GET", "/api/cleanup/status").status_code == 200


def test_it_speaks_tls_and_takes_a_certificate_that_was_renewed(store: JobStore, tmp_path: Path) -> None:
    def issue() -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    issue()
    port = free_port()
    site = start(
        store,
        listen=f"127.0.0.1:{port}",
        api=f"tls_cert_file: {tmp_path}/cert.pem, tls_key_file: {tmp_path}/key.pem",
    )
    try:
        headers = {"Authorization": f"Bearer {site.tokens['read']}"}
        url = f"https://localhost:{port}/api/cleanup/status"

        def status() -> int:
            return requests.get(url, headers=headers, verify=str(tmp_path / "ca.pem"), timeout=10).status_code

        await_listening(lambda: socket.create_connection(("127.0.0.1", port)).close())
        assert status() == 200
        issue()
        with pytest.raises(requests.exceptions.SSLError):
            status()
        eemtcleanupd(site.store, "reload")
        assert status() == 200
        file = store.path / "cleanup_config.yaml"
        file.write_text(re.sub(r", tls_.*pem", "", file.read_text()))
        eemtcleanupd(site.store, "reload")  # the same address, without TLS
        assert requests.get(url.replace("https", "http"), headers=headers, timeout=10).status_code == 200
    finally:
        end(site)


@pytest.mark.parametrize(("trusted", "address"), [("127.0.0.1", "203.0.113.9"), ("192.0.2.1", "127.0.0.1")])
def test_a_proxy_is_believed_only_where_it_is_trusted(store: JobStore, trusted: str, address: str) -> None:
    site = start(store, api=f"trusted_proxies: ['{trusted}']")
    site.ask("GET", "/api/cleanup/status", token=WRONG, X_Forwarded_For="198.51.100.7, 203.0.113.9")
    assert [each["ip_address"] for each in site.refusals()] == [address]
    end(site)


def test_a_page_of_another_site_changes_nothing_with_our_cookie(site: Site) -> None:
    with requests.Session() as browser:
        browser.post(f"{site.url}/login", data={"token": site.tokens["clean"]}, timeout=10)
        assert browser.get(f"{site.url}/api/cleanup/status", timeout=10).status_code == 200
        for origin in ("https://evil.example", "null", None):
            headers = {} if origin is None else {"Origin": origin}
            assert browser.post(f"{site.url}/api/cleanup", headers=headers, timeout=10).status_code == 403
        assert site.store.results("a").exists()
        own = browser.post(f"{site.url}/api/cleanup", headers={"Origin": site.url}, timeout=60)
        assert own.status_code == 200
        eemtcleanupd(site.store, "token", "revoke", "clean")
        assert browser.get(f"{site.url}/api/cleanup/status", timeout=10).status_code == 401
