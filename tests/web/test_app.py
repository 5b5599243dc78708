"""The HTTP contract, against a running daemon."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from tests.cleanup.conftest import JobStore
from tests.conftest import settle
from tests.ports import free_port
from tests.web.conftest import RunningDaemon, create_store, eemtcleanupd, eventually, start

WRONG = "eemt_wrong"
shared = pytest.mark.xdist_group("shared daemon")
after_run = pytest.mark.xdist_group("daemon after a run")
Cleaned = tuple[RunningDaemon, requests.Response]


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cleaned]:
    """A daemon for all tests that look at its only run, and the answer to the request for it."""
    daemon = start(create_store(tmp_path_factory.mktemp("cleaned") / "store"))
    yield daemon, daemon.request("POST", "/api/cleanup")
    daemon.stop()


@after_run
def test_a_cleanup_answers_with_what_it_cleaned(cleaned: Cleaned) -> None:
    daemon, answer = cleaned
    assert answer.status_code == 200
    result = answer.json()
    assert result["success"] is True
    assert result["cleaned_jobs"] == {"successful": 1, "failed": 1}
    assert set(result["space_freed"]) == {"bytes", "human_readable"}
    assert result["space_freed"]["bytes"] > 0
    assert {job["job_id"] for job in result["details"]} == {"a", "b"}
    for job in result["details"]:
        assert {"job_id", "status", "age_days", "space_freed"} <= set(job)
    assert daemon.store.cleaned() == {"a", "b"}
    assert daemon.store.results("young").exists()
    run = daemon.get(f"/api/cleanup/runs/{result['run_id']}")
    assert (run["trigger"], run["successful"], run["failed"]) == ("api", 1, 1)
    assert {job["job_id"] for job in run["details"]} == {"a", "b"}
    assert daemon.get("/api/cleanup/runs")["runs"][0]["run_id"] == result["run_id"]
    assert '"user": "clean"' in daemon.audit()
    job = daemon.request("GET", "/api/cleanup/jobs/a", token="read").json()
    assert (job["job_id"], job["cleaned"]) == ("a", True)
    assert daemon.request("GET", "/api/cleanup/jobs/a", token=None).status_code == 401


@shared
def test_a_dry_run_and_the_plan_are_equal_and_change_nothing(shared_daemon: RunningDaemon) -> None:
    before = shared_daemon.store.snapshot()
    dry = shared_daemon.request("POST", "/api/cleanup", {"dry_run": True}).json()
    plan = shared_daemon.get("/api/cleanup/plan")
    assert dry["details"] == plan["details"]
    assert {job["job_id"] for job in plan["details"]} == {"a", "b"}
    assert plan["dry_run"] is True
    assert shared_daemon.store.snapshot() == before


@pytest.mark.slow
def test_the_body_changes_the_retention_for_one_run(daemon: RunningDaemon) -> None:
    result = daemon.request(
        "POST", "/api/cleanup", {"success_retention_hours": 1, "failed_retention_hours": 9000}
    ).json()
    assert {job["job_id"] for job in result["details"]} == {"a", "young"}
    assert daemon.store.results("b").exists()
    result = daemon.request("POST", "/api/cleanup").json()
    assert {job["job_id"] for job in result["details"]} == {"b"}


@pytest.mark.slow
def test_an_asynchronous_run_has_its_own_url(daemon: RunningDaemon) -> None:
    answer = daemon.request("POST", "/api/cleanup", Prefer="respond-async")
    assert answer.status_code == 202
    url = answer.headers["Location"]
    assert answer.json()["url"] == url
    while daemon.get(url)["finished_at"] is None:
        pass
    assert daemon.get(url)["outcome"] == "success"


@shared
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
def test_invalid_input_names_the_field_and_changes_nothing(
    shared_daemon: RunningDaemon, body: object, field: str
) -> None:
    before = shared_daemon.store.snapshot()
    answer = shared_daemon.request("POST", "/api/cleanup", body)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert shared_daemon.store.snapshot() == before


READ_PATHS = [
    "/api/cleanup/plan",
    "/api/cleanup/status",
    "/api/cleanup/runs",
    "/api/cleanup/runs/x",
    "/api/cleanup/events",
]
READ_PATHS += ["/api/cleanup/holds", "/api/cleanup/trash", "/metrics", "/"]


@shared
@pytest.mark.parametrize("path", READ_PATHS)
def test_reading_needs_a_token(shared_daemon: RunningDaemon, path: str) -> None:
    without = shared_daemon.request("GET", path, token=None)
    assert without.status_code == 401
    wrong = shared_daemon.request("GET", path, token=WRONG)
    assert wrong.status_code == 403
    assert [entry["details"]["request"] for entry in shared_daemon.refusals()] == [f"GET {path}"] * 2
    assert {entry["ip_address"] for entry in shared_daemon.refusals()} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_cached_answer_needs_read_scope(daemon: RunningDaemon) -> None:
    paths = [f"/api/cleanup/{name}" for name in ("status", "runs", "plan", "holds", "trash")] + ["/metrics"]
    first = {path: daemon.request("GET", path) for path in paths}
    again = {path: daemon.request("GET", path, token="read") for path in paths}
    assert {path: answer.status_code for path, answer in again.items()} == dict.fromkeys(paths, 200)
    media_types = [
        {path: answer.headers["Content-Type"] for path, answer in answers.items()}
        for answers in (first, again)
    ]
    assert media_types[0] == media_types[1]
    assert all("default-src 'none'" in answer.headers["Content-Security-Policy"] for answer in again.values())
    daemon.revoke("read")
    codes = {
        daemon.request("GET", path, token=token).status_code for path in paths for token in ("read", WRONG)
    }
    assert codes == {403}
    assert {daemon.request("GET", path, token=None).status_code for path in paths} == {401}
    assert len(daemon.refusals()) == 3 * len(paths)


CHANGE_PATHS: dict[str, dict[str, str]] = {
    "/api/cleanup": {},
    "/api/cleanup/holds": {"job_id": "a"},
    "/api/cleanup/holds/release": {"job_id": "a"},
    "/api/cleanup/trash/restore": {"job_id": "a"},
    "/api/cleanup/trash/purge": {},
    "/api/cleanup/stop": {},
}


@shared
@pytest.mark.parametrize("path", CHANGE_PATHS)
def test_changes_need_clean_scope(shared_daemon: RunningDaemon, path: str) -> None:
    before = shared_daemon.store.snapshot()
    codes = [
        shared_daemon.request("POST", path, CHANGE_PATHS[path], token=token).status_code
        for token in (None, WRONG, "read")
    ]
    assert codes == [401, 403, 403]
    assert shared_daemon.store.snapshot() == before
    assert len(shared_daemon.refusals()) == 3


@pytest.mark.slow
def test_an_expired_or_revoked_token_is_refused_at_once(daemon: RunningDaemon) -> None:
    old = eemtcleanupd(daemon.store, "token", "add", "old", "--scope", "clean", "--days", "0").split()[-1]
    assert daemon.request("POST", "/api/cleanup", token=old).status_code == 403
    assert daemon.refusals()[-1]["user"] == "old"
    eemtcleanupd(daemon.store, "token", "revoke", "read")
    assert daemon.request("GET", "/api/cleanup/status", token="read").status_code == 403


@shared
def test_only_health_needs_no_token(shared_daemon: RunningDaemon) -> None:
    assert shared_daemon.request("GET", "/healthz", token=None).json() == {"status": "ok"}
    # Probes of Kubernetes use the address of the pod.
    for address in ("10.1.2.3:5001", "[fd00::7]:5001"):
        assert shared_daemon.request("GET", "/healthz", token=None, Host=address).status_code == 200


@shared
def test_a_foreign_host_is_refused_and_audited(shared_daemon: RunningDaemon) -> None:
    before = shared_daemon.store.snapshot()
    answer = shared_daemon.request("POST", "/api/cleanup", Host="evil.example")
    assert answer.status_code == 421
    assert shared_daemon.store.snapshot() == before
    assert "evil.example" in shared_daemon.refusals()[-1]["details"]["reason"]


@shared
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_hundred_megabytes_is_refused(shared_daemon: RunningDaemon, *, chunked: bool) -> None:
    before = shared_daemon.store.snapshot()

    def body() -> object:
        chunk = b" " * 100_000
        return (chunk for _ in range(1000)) if chunked else chunk * 1000

    with contextlib.suppress(
        requests.ConnectionError
    ):  # the server may close the connection before it has read the body
        answer = requests.post(
            f"{shared_daemon.url}/api/cleanup",
            data=body(),  # type: ignore[arg-type]
            headers={"Authorization": f"Bearer {shared_daemon.tokens['clean']}"},
            timeout=60,
        )
        assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
    assert "65536" in shared_daemon.refusals()[-1]["details"]["reason"]
    assert shared_daemon.store.snapshot() == before


@pytest.mark.slow
def test_an_address_is_throttled_after_many_refusals_but_valid_requests_are_not(
    daemon: RunningDaemon,
) -> None:
    codes = [daemon.request("GET", "/api/cleanup/status", token=WRONG).status_code for _ in range(65)]
    assert codes[0] == 403
    assert codes[-1] == 429
    assert len(daemon.refusals()) == 61
    assert daemon.request("GET", "/api/cleanup/status").status_code == 200


@after_run
def test_no_token_is_in_a_log_or_in_the_token_file(cleaned: Cleaned) -> None:
    daemon, _ = cleaned
    daemon.request("GET", "/api/cleanup/status", token=WRONG)
    written = b"".join(path.read_bytes() for path in daemon.store.path.rglob("*") if path.is_file())
    for token in (*daemon.tokens.values(), WRONG):
        assert token.encode() not in written


@shared
def test_answers_have_security_headers(shared_daemon: RunningDaemon) -> None:
    headers = shared_daemon.request("GET", "/").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "server" not in {name.lower() for name in headers}


@pytest.mark.slow
def test_a_hold_keeps_a_job_until_it_is_released(daemon: RunningDaemon) -> None:
    assert daemon.request("POST", "/api/cleanup/holds", {"job_id": "a", "reason": "paper"}).status_code == 201
    (held,) = daemon.get("/api/cleanup/holds")["holds"]
    assert (held["job_id"], held["reason"], held["owner"]) == ("a", "paper", "clean")
    assert held["has_row"] is True
    assert [job["job_id"] for job in daemon.request("POST", "/api/cleanup").json()["details"]] == ["b"]
    assert daemon.request("POST", "/api/cleanup/holds/release", {"job_id": "a"}).status_code == 200
    assert daemon.request("POST", "/api/cleanup/holds/release", {"job_id": "a"}).status_code == 404
    assert [job["job_id"] for job in daemon.request("POST", "/api/cleanup").json()["details"]] == ["a"]


@pytest.mark.slow
def test_a_hold_that_comes_too_late_has_a_warning(daemon: RunningDaemon) -> None:
    def warning(job_id: str) -> str | None:
        body = {"job_id": job_id, "unknown_ok": True}
        answer: dict[str, str | None] = daemon.request("POST", "/api/cleanup/holds", body).json()
        return answer["warning"]

    assert warning("b") is None
    daemon.request("POST", "/api/cleanup")
    cleaned, unknown = warning("a"), warning("nobody")
    assert cleaned is not None
    assert unknown is not None
    assert "nobody" in unknown
    assert unknown.replace("nobody", "a") != cleaned


@shared
def test_a_hold_of_an_unknown_job_is_refused(shared_daemon: RunningDaemon) -> None:
    answer = shared_daemon.request("POST", "/api/cleanup/holds", {"job_id": "nobody"})
    assert answer.status_code == 404
    assert "nobody" not in str(shared_daemon.get("/api/cleanup/holds"))


@pytest.mark.slow
def test_a_hold_is_set_with_a_warning_if_the_jobs_cannot_be_read(daemon: RunningDaemon) -> None:
    with contextlib.closing(sqlite3.connect(daemon.store.path / "jobs.db")) as database:
        database.execute("ALTER TABLE jobs RENAME TO moved")
    answer = daemon.request("POST", "/api/cleanup/holds", {"job_id": "b"})
    assert (answer.status_code, answer.json()["job_id"]) == (201, "b")
    assert "jobs" in answer.json()["warning"]
    assert [hold["job_id"] for hold in daemon.get("/api/cleanup/holds")["holds"]] == ["b"]


@pytest.mark.slow
def test_a_job_is_restored_from_the_trash(daemon_with_trash: RunningDaemon) -> None:
    daemon = daemon_with_trash
    daemon.request("POST", "/api/cleanup")
    whole, part = daemon.get("/api/cleanup/trash"), daemon.get("/api/cleanup/trash?limit=1")
    assert {job["job_id"] for job in whole["trash"]} == {"a", "b"}
    assert (whole["more"], len(part["trash"]), part["more"]) == (False, 1, True)
    assert not daemon.get("/api/cleanup/trash?limit=2")["more"]
    daemon.store.results("a").mkdir()  # the job ran again
    settle(daemon.store.results("a"), datetime.now(UTC) - timedelta(days=9))
    daemon.store.sql("UPDATE jobs SET data_cleaned_at = NULL WHERE id = 'a'")
    daemon.request("POST", "/api/cleanup")
    result = daemon.request("POST", "/api/cleanup/trash/restore", {"job_id": "a"}).json()
    assert sorted(result["restored"]) == ["results/a/", "uploads/dem.tif"]
    (warning,) = result["warnings"]
    assert "results/a" in warning
    assert daemon.store.results("a").exists()
    assert daemon.request("POST", "/api/cleanup/trash/restore", {"job_id": "a"}).status_code == 409


@after_run
def test_metrics_count_runs_and_cleaned_jobs(cleaned: Cleaned) -> None:
    daemon, _ = cleaned
    text = daemon.request("GET", "/metrics").text
    assert re.search(r"^eemt_cleanup_runs_total 1\.0$", text, re.MULTILINE)
    assert 'eemt_jobs_cleaned_total{status="completed"} 1.0' in text


@after_run
def test_the_page_of_a_run_shows_what_it_did(cleaned: Cleaned) -> None:
    daemon, answer = cleaned
    run_id = answer.json()["run_id"]
    page = daemon.request("GET", f"/runs/{run_id}")
    assert page.status_code == 200
    for text in ("dem.tif", "completed", "failed", "cleaned"):
        assert text in page.text
    assert daemon.request("GET", "/runs/nothing").status_code == 404
    assert daemon.request("GET", f"/runs/{run_id}", token=None).status_code == 401


@pytest.mark.slow
def test_progress_is_streamed_until_the_run_ends(store: JobStore) -> None:
    for job in range(30):
        store.job(f"slow{job}", files=4)
    daemon = start(store, "performance: {max_deletes_per_second: 15, batch_size: 2}\n")
    headers = {"Authorization": f"Bearer {daemon.tokens['read']}"}
    url = f"{daemon.url}/api/cleanup/events"
    with requests.get(url, headers=headers, stream=True, timeout=60) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        assert next(lines) == "event: idle"
        assert daemon.request("POST", "/api/cleanup", Prefer="respond-async").status_code == 202
        assert daemon.request("POST", "/api/cleanup").status_code == 409
        progress: list[dict[str, int]] = []
        for line in lines:
            if line == "event: progress":
                progress.append(json.loads(next(lines).removeprefix("data: ")))
            elif line == "event: idle" and progress:
                break
    done = [event["jobs_done"] for event in progress]
    assert done == sorted(done)
    assert {event["jobs_total"] for event in progress} >= {32}
    assert max(event["bytes_freed"] for event in progress) > 0
    daemon.stop()


@shared
def test_the_event_stream_can_end_after_one_event(shared_daemon: RunningDaemon) -> None:
    answer = requests.get(
        f"{shared_daemon.url}/api/cleanup/events?once=true",
        headers={"Authorization": f"Bearer {shared_daemon.tokens['read']}"},
        timeout=30,
    )
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.text == "event: idle\ndata: null\n\n"


@pytest.mark.slow
def test_a_run_while_the_lock_is_held_is_a_conflict(daemon: RunningDaemon) -> None:
    lock = daemon.store.path / "jobs.db.eemtcleanupd.lock"
    import fcntl

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = daemon.request("POST", "/api/cleanup")
    assert answer.status_code == 409
    assert daemon.request("POST", "/api/cleanup").status_code == 200


@pytest.mark.slow
def test_simultaneous_requests_never_clean_a_job_twice(daemon: RunningDaemon) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(daemon.request("POST", "/api/cleanup").status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 409}
    assert 200 in codes
    cleaned = daemon.store.sql("SELECT job_id FROM cleanup_log WHERE action = 'cleaned'")
    assert sorted(str(row[0]) for row in cleaned) == ["a", "b"]


@pytest.mark.slow
def test_without_a_token_the_daemon_refuses_a_network_address(tmp_path: Path) -> None:
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
    assert "token add" in done.stderr


@pytest.mark.slow
def test_a_unix_socket_has_the_configured_mode_and_needs_tokens(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "s")
    store.job("a")
    address = tmp_path / "api.sock"
    daemon = start(store, listen=f"unix:{address}")
    try:
        request = b"GET /api/cleanup/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n"

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(address))

        eventually(connect)
        assert address.stat().st_mode & 0o777 == 0o660
        answers = []
        for more in (b"", f"Authorization: Bearer {daemon.tokens['read']}\r\n".encode()):
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
        daemon.stop()
    assert not address.exists()


@pytest.mark.slow
def test_a_reload_changes_the_address_unless_it_is_invalid(daemon: RunningDaemon) -> None:
    file = daemon.store.path / "cleanup_config.yaml"
    old, port = file.read_text(), free_port()
    file.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1x", old))
    assert daemon.request("GET", "/api/cleanup/status").status_code == 200
    file.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", old))
    eemtcleanupd(daemon.store, "reload")
    daemon.url = f"http://127.0.0.1:{port}"
    assert daemon.request("GET", "/api/cleanup/status").status_code == 200


@pytest.mark.slow
def test_tls_uses_a_renewed_certificate_after_a_reload(store: JobStore, tmp_path: Path) -> None:
    def issue() -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    issue()
    port = free_port()
    daemon = start(
        store,
        listen=f"127.0.0.1:{port}",
        api=f"tls_cert_file: {tmp_path}/cert.pem, tls_key_file: {tmp_path}/key.pem",
    )
    try:
        headers = {"Authorization": f"Bearer {daemon.tokens['read']}"}
        url = f"https://localhost:{port}/api/cleanup/status"

        def status() -> int:
            return requests.get(url, headers=headers, verify=str(tmp_path / "ca.pem"), timeout=60).status_code

        eventually(lambda: socket.create_connection(("127.0.0.1", port)).close())
        assert status() == 200
        issue()
        with pytest.raises(requests.exceptions.SSLError):
            status()
        eemtcleanupd(daemon.store, "reload")
        assert status() == 200
        file = store.path / "cleanup_config.yaml"
        file.write_text(re.sub(r", tls_.*pem", "", file.read_text()))
        eemtcleanupd(daemon.store, "reload")  # the same address, without TLS
        assert requests.get(url.replace("https", "http"), headers=headers, timeout=60).status_code == 200
    finally:
        daemon.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("trusted", "address"), [("127.0.0.1", "203.0.113.9"), ("192.0.2.1", "127.0.0.1")])
def test_only_a_trusted_proxy_can_set_the_clients_address(
    store: JobStore, trusted: str, address: str
) -> None:
    daemon = start(store, api=f"trusted_proxies: ['{trusted}']")
    daemon.request("GET", "/api/cleanup/status", token=WRONG, X_Forwarded_For="198.51.100.7, 203.0.113.9")
    assert [entry["ip_address"] for entry in daemon.refusals()] == [address]
    daemon.stop()


@pytest.mark.slow
def test_another_sites_page_cannot_use_the_session_cookie(daemon: RunningDaemon) -> None:
    with requests.Session() as browser:
        browser.post(f"{daemon.url}/login", data={"token": daemon.tokens["clean"]}, timeout=10)
        assert browser.get(f"{daemon.url}/api/cleanup/status", timeout=10).status_code == 200
        for origin in ("https://evil.example", "null", None):
            headers = {} if origin is None else {"Origin": origin}
            assert browser.post(f"{daemon.url}/api/cleanup", headers=headers, timeout=10).status_code == 403
        assert daemon.store.results("a").exists()
        own = browser.post(f"{daemon.url}/api/cleanup", headers={"Origin": daemon.url}, timeout=60)
        assert own.status_code == 200
        eemtcleanupd(daemon.store, "token", "revoke", "clean")
        assert browser.get(f"{daemon.url}/api/cleanup/status", timeout=10).status_code == 401


@shared
@pytest.mark.parametrize(
    ("path", "token", "status"), [("/healthz", False, 200), ("/metrics", True, 200), ("/metrics", False, 401)]
)
def test_a_monitor_can_ask_for_the_head_only(
    path: str, token: bool, status: int, shared_daemon: RunningDaemon
) -> None:
    options: dict[str, Any] = {} if token else {"token": None}
    answer = shared_daemon.request("HEAD", path, **options)
    assert (answer.status_code, answer.content) == (status, b"")
