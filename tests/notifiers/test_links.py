"""What messages link to, and what they name: the run's page, the trash, the largest jobs, paths of errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.delivery.serialization import decode, encode
from eemtcleanupd.events import JobNote, JobTally, RunFinished, StorageState
from eemtcleanupd.hookspecs import Digest
from eemtcleanupd.model import Outcome
from eemtcleanupd.notifiers.messages import Listing, render
from eemtcleanupd.plugins import Plugins
from tests.notifiers.conftest import StartMail
from tests.notifiers.samples import FAILED, FINISHED, NOW, report

URL = "https://cleanup.example.com/eemt"
PAGE = f"{URL}/runs/20260615T120000-abcd"
ERRORS = [f"job-{number}: Permission denied results/{'x' * 400}.tif" for number in range(10)]
MANY_ERRORS = RunFinished(
    report(
        "errors",
        errors=30,
        storage=None,
        failures=tuple(
            JobNote(job_id, "completed", 0, message)
            for job_id, message in (line.split(": ") for line in ERRORS)
        ),
    )
)
MakePlugins = Callable[[str], Plugins]
Arrived = Callable[..., dict[str, Any]]


@pytest.fixture(params=["slack", "webhook"])
def channel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def arrived(plugins: MakePlugins, httpserver: HTTPServer) -> Arrived:
    """Send an event through a channel, and return the JSON that arrives."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    keys = {"slack": "webhook_url", "webhook": "url"}

    def send(channel: str, event: Any, public_url: str | None = f"{URL}/") -> dict[str, Any]:
        block = f"{{enabled: true, {keys[channel]}: '{httpserver.url_for('/hook')}'}}"
        api = "" if public_url is None else f"api: {{public_url: '{public_url}'}}\n"
        loaded = plugins(f"{api}notifications: {{{channel}: {block}}}")
        call = loaded.hook_for(channel, "digest" if isinstance(event, Digest) else event.hook)
        assert call is not None
        call(event)
        document: dict[str, Any] = httpserver.log[-1][0].get_json()
        return document

    return send


def link(channel: str, document: dict[str, Any]) -> str | None:
    found = document.get("link") if channel == "webhook" else document["attachments"][0].get("title_link")
    assert found is None or isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("event", "page"),
    [
        (FINISHED, PAGE),
        (RunFinished(report("errors", errors=1)), PAGE),
        (FAILED, f"{URL}/"),
        (Digest(NOW, NOW, (FINISHED,), (FAILED,)), PAGE),
        (Digest(NOW, NOW, (), (FAILED,)), f"{URL}/"),
        (Digest(NOW, NOW, (), ()), None),
        (RunFinished(report(is_test=True)), f"{URL}/"),
        (RunFinished(report(dry_run=True)), None),
    ],
    ids=["finished", "errors", "failed", "digest", "digest of failures", "empty digest", "test", "dry run"],
)
def test_a_message_links_to_the_page_of_its_run(
    channel: str, arrived: Arrived, event: Any, page: str | None
) -> None:
    assert link(channel, arrived(channel, event)) == page


def test_without_a_public_url_there_is_no_link(channel: str, arrived: Arrived) -> None:
    assert link(channel, arrived(channel, FINISHED, None)) is None


def test_a_forged_event_of_the_outbox_cannot_choose_the_site_of_a_link(arrived: Arrived) -> None:
    row = json.loads(encode(FINISHED))
    row["report"] |= {"run_id": "../../@evil.example/?x=<b>", "page_url": "https://evil.example"}
    found = link("slack", arrived("slack", decode("run_finished", json.dumps(row))))
    assert found is not None
    assert found.startswith(f"{URL}/runs/")
    assert not set("@?<>").intersection(found)
    assert found.count("/") == PAGE.count("/")


def test_a_mail_has_the_link_as_text_and_as_html(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    block = f"{{enabled: true, smtp_server: localhost, smtp_port: {server.port}, security: starttls"
    block += f", ca_file: {server.ca_file}, sender: a@example.com, recipients: [b@example.com]"
    block += ", username: eemt, password: very-secret-password}"
    loaded = plugins(f"api: {{public_url: '{URL}'}}\nnotifications: {{email: {block}}}")
    call = loaded.hook_for("email", "run_finished")
    assert call is not None
    call(MANY_ERRORS)
    mail = message_from_bytes(server.received[-1][2], policy=policy.default)
    assert isinstance(mail, EmailMessage)
    plain, html = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    assert PAGE in plain.get_content()
    assert html.get_content().count(f'href="{PAGE}"') == 2
    # Each error has one line, and the number of the others has the link.
    assert sum(error in plain.get_content().split("\n") for error in (f"  {line}" for line in ERRORS)) == 10
    assert plain.get_content().count(PAGE) == 2
    assert "FAILED" in mail["Subject"]


def test_slack_shows_whole_errors_and_counts_the_others_with_a_link(arrived: Arrived) -> None:
    for public_url in (URL, None):
        document = arrived("slack", MANY_ERRORS, public_url)
        (value,) = [f["value"] for f in document["attachments"][0]["fields"] if f["title"] == "Errors"][1:]
        *shown, others = value.split("\n")
        assert shown == ERRORS[: len(shown)]
        assert 0 < len(shown) < 10
        assert str(30 - len(shown)) in others
        assert (f"<{PAGE}|" in others) == (public_url is not None)


def test_a_ping_with_many_errors_ends_with_a_whole_line(plugins: MakePlugins, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/ping/fail").respond_with_data("ok")
    loaded = plugins(f"notifications: {{ping: {{enabled: true, url: '{httpserver.url_for('/ping')}'}}}}")
    call = loaded.hook_for("ping", "run_finished")
    assert call is not None
    long = tuple(JobNote(f"job-{n}", "completed", 0, "é" * 900) for n in range(10))
    call(RunFinished(report("errors", errors=10, failures=long)))
    lines = httpserver.log[-1][0].get_data().decode().split("\n")
    assert [line for line in lines if "é" in line] == [f"  job-{n}: {'é' * 900}" for n in range(5)]


def lists(event: Any) -> dict[str, Listing]:
    return {listing.title: listing for listing in render(event).lists}


def test_every_list_counts_the_errors_that_it_does_not_name() -> None:
    failed = Digest(NOW, NOW, (MANY_ERRORS,), (FAILED,))
    for event, total in ((MANY_ERRORS, 30), (failed, 31)):
        errors = lists(event)["Errors"]
        assert len(errors.lines) + errors.more == total
    kept = lists(RunFinished(report(vetoed=MANY_ERRORS.report.failures, vetoed_jobs=12)))["Kept by plugins"]
    assert kept.more == 2


def test_the_first_three_fields_stay_with_a_trash(arrived: Arrived) -> None:
    storage = StorageState(2**30, 2**30, 2**30, 2**40, 12, 820 * 2**20, NOW + timedelta(days=3))
    found = arrived(
        "slack", RunFinished(report(storage=storage, purge_after=NOW, trash_purged=JobTally(3, 2**20)))
    )
    fields = [field["title"] for field in found["attachments"][0]["fields"]]
    assert fields[:3] == ["Jobs Cleaned", "Space Freed", "Status"]
    assert "Waiting in Trash" in fields


def test_the_trash_is_named_with_its_size_and_its_end() -> None:
    storage = StorageState(2**30, 2**30, 2**30, 2**40, 12, 820 * 2**20, NOW + timedelta(days=3))
    for event in (
        RunFinished(report(storage=storage)),
        Digest(NOW, NOW, (RunFinished(report(storage=storage)),), ()),
    ):
        waiting = dict(render(event).facts)["Waiting in Trash"]
        assert "12 items" in waiting
        assert "820 MB" in waiting
        assert f"{(NOW + timedelta(days=3)).astimezone():%Y-%m-%d %H:%M}" in waiting
    assert "Waiting in Trash" not in dict(render(FINISHED).facts)


def test_a_message_names_the_three_largest_jobs() -> None:
    sizes = (3, 9, 0, 5, 7, 1)
    finished = RunFinished(
        report(jobs=tuple(JobNote(f"job-{size}", "completed", size * 2**20) for size in sizes))
    )
    for event in (finished, Digest(NOW, NOW, (finished, FINISHED), ())):
        names = [line.partition(":")[0] for line in lists(event)["Biggest jobs"].lines]
        expected = ["job-9", "job-7", "job-5"]
        assert names == (["job-20240113-123456", *expected[:2]] if isinstance(event, Digest) else expected)


def test_the_path_of_an_error_is_complete() -> None:
    path = "results/job-1/" + "/".join(["a-folder-with-a-rather-long-name"] * 20) + "/total_sun_day_002.tif"
    failed = RunFinished(
        report(
            Outcome.ERRORS,
            errors=1,
            failures=(JobNote("job-1", "completed", 0, f"Permission denied {path}"),),
        )
    )
    assert path in lists(failed)["Errors"].lines[0]
