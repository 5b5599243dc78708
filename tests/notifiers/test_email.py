"""E-mail to a real server with STARTTLS, certificates and a login."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.events import RunFinished
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.plugins import Plugins
from tests.notifiers.conftest import PASSWORD, Configure, MailServer, StartMail
from tests.notifiers.samples import EVENTS, FAILED, FINISHED, HOSTILE, HOSTILE_REPORT, NOW
from tests.ports import free_port

MakePlugins = Callable[[str], Plugins]


def block(server: MailServer, more: str = "", password: str = PASSWORD) -> str:
    return f"""notifications:
  email:
    enabled: true
    smtp_server: localhost
    smtp_port: {server.port}
    security: starttls
    ca_file: {server.ca_file}
    username: eemt
    password: {password}
    sender: eemt@example.com
    reply_to: gis@example.com
    recipients: [admin@example.com, second@example.com]
    {more}
"""


def without_image(event: Any) -> Any:
    """Return an event whose report has no trend, because drawing it takes a second."""
    if not isinstance(event, RunFinished) or event.report.storage is None:
        return event
    return replace(event, report=replace(event.report, storage=replace(event.report.storage, trend=())))


def send(plugins: Plugins, event: object = None) -> object:
    """Send an event, by default that of a run that finished."""
    event = event or without_image(FINISHED)
    call = plugins.hook_for("email", "run_finished")
    assert call is not None
    return call(event)


def last(server: MailServer) -> EmailMessage:
    message = message_from_bytes(server.received[-1][2], policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def part(message: EmailMessage, kind: str) -> EmailMessage:
    section = next(section for section in message.walk() if section.get_content_type() == kind)
    assert isinstance(section, EmailMessage)
    return section


def test_the_report_arrives_encrypted_for_all_recipients(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    assert "localhost" in str(send(plugins(block(server))))
    assert server.encrypted == [True]
    sender, recipients, _ = server.received[0]
    assert (sender, recipients) == ("eemt@example.com", ["admin@example.com", "second@example.com"])
    message = last(server)
    assert message["Reply-To"] == "gis@example.com"
    assert message["Subject"] == "EEMT cleanup on gis1: 5 jobs cleaned, 45.5 GB freed"


def test_text_and_html_have_all_facts(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    send(plugins(block(server)))
    text = part(last(server), "text/plain").get_content()
    html = part(last(server), "text/html").get_content()
    for fact in ("Jobs Cleaned", "Space Freed", "Current Storage Usage", "Available Space", "Next cleanup"):
        assert fact in text
        assert fact in html
    assert "Available Space: 50 GB of 100 GB" in text


@pytest.mark.slow
def test_the_trend_is_an_inline_image(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    send(plugins(block(server)), FINISHED)
    image = part(last(server), "image/png")
    assert image.get_content().startswith(b"\x89PNG")
    assert image["Content-Disposition"].startswith("inline")
    assert f'src="cid:{image["Content-ID"][1:-1]}"' in part(last(server), "text/html").get_content()


def test_the_subject_of_a_digest_is_the_documented_one(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    day = Digest(NOW, NOW, (without_image(FINISHED), without_image(FINISHED)), ())
    send(plugins(block(server)), day)
    message = last(server)
    assert message["Subject"] == "EEMT Daily Cleanup Report"
    lines = part(message, "text/plain").get_content().splitlines()
    assert {"Jobs Cleaned: 10", "Space Freed: 91 GB", "Host: gis1"} <= set(lines)
    send(plugins(block(server)), replace(day, failed=(FAILED,)))
    assert last(server)["Subject"] == "FAILED: EEMT Daily Cleanup Report"


def test_failures_are_in_the_subject(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    loaded = plugins(block(server))
    send(loaded, without_image(HOSTILE_REPORT))
    assert last(server)["Subject"].startswith(f"FAILED for {len(HOSTILE)} jobs")
    call = loaded.hook_for("email", "run_failed")
    assert call is not None
    call(FAILED)
    assert last(server)["Subject"].startswith("FAILED: ")
    assert "gis1" in last(server)["Subject"]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_hostile_names_forge_no_header_and_no_markup(
    start_mail: StartMail, plugins: MakePlugins, event: object
) -> None:
    server = start_mail()
    send(plugins(block(server)), without_image(event))
    message = last(server)
    assert message["Bcc"] is None
    assert "<script>" not in part(message, "text/html").get_content()


@pytest.mark.parametrize(
    ("answer", "is_retried"),
    [("451 later", True), ("421 busy", True), ("550 never", False), ("554 spam", False)],
)
def test_the_reply_code_decides_about_a_retry(
    start_mail: StartMail, plugins: MakePlugins, answer: str, is_retried: bool
) -> None:
    server = start_mail()
    server.answer = answer
    with pytest.raises(Exception, match=answer) as caught:
        send(plugins(block(server)))
    assert isinstance(caught.value, RetryLater) == is_retried
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("farewell", ["421 timed out", "500 what", "250 fine"])
def test_an_accepted_mail_is_sent_whatever_the_server_answers_to_quit(
    start_mail: StartMail, plugins: MakePlugins, farewell: str
) -> None:
    server = start_mail()
    server.farewell = farewell
    assert "2" in str(send(plugins(block(server))))
    assert len(server.received) == 1


def test_a_recipient_that_is_refused_for_ever_is_an_error_and_the_others_receive_the_mail(
    start_mail: StartMail, plugins: MakePlugins
) -> None:
    server = start_mail()
    server.rejected["second@example.com"] = "550 nobody"
    with pytest.raises(RuntimeError, match=r"second@example\.com: 550"):
        send(plugins(block(server)))
    assert [recipients for _, recipients, _ in server.received] == [["admin@example.com"]]
    server.rejected["admin@example.com"] = "550 nobody"
    with pytest.raises(RuntimeError, match=r"admin@example\.com: 550"):
        send(plugins(block(server)))


def test_only_the_recipients_that_did_not_receive_the_mail_get_it_in_a_retry(
    start_mail: StartMail, plugins: MakePlugins
) -> None:
    server = start_mail()
    server.rejected["second@example.com"] = "450 greylisted"
    loaded = plugins(block(server))
    with pytest.raises(RetryLater) as caught:
        send(loaded)
    assert caught.value.recipients == ("second@example.com",)
    server.rejected.clear()
    call = loaded.hook_for("email", "run_finished")
    assert call is not None
    call(without_image(FINISHED), caught.value.recipients)
    assert [recipients for _, recipients, _ in server.received] == [
        ["admin@example.com"],
        ["second@example.com"],
    ]
    assert "recipients" in str(call(without_image(FINISHED), ("gone@example.com",)))
    assert len(server.received) == 2


def test_nobody_received_a_mail_during_which_the_server_closed_the_connection(
    start_mail: StartMail, plugins: MakePlugins
) -> None:
    server = start_mail()
    server.rejected["second@example.com"] = "421 shutting down"
    with pytest.raises(RetryLater) as caught:
        send(plugins(block(server)))
    assert set(caught.value.recipients) == {"admin@example.com", "second@example.com"}
    assert server.received == []


def test_an_international_domain_reaches_a_server_without_smtputf8(
    start_mail: StartMail, plugins: MakePlugins
) -> None:
    server = start_mail()
    text = block(server).replace("second@example.com", "second@exämple.org").replace("gis@", "gis@büro.")
    send(plugins(text))
    assert server.received[0][1] == ["admin@example.com", "second@xn--exmple-cua.org"]
    assert last(server)["Reply-To"] == "gis@xn--bro-hoa.example.com"


def test_a_wrong_password_is_neither_retried_nor_shown(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail()
    wrong = "-".join(("wrong", "secret"))
    with pytest.raises(RuntimeError, match="535") as caught:
        send(plugins(block(server, password=wrong)))
    assert wrong not in "".join(traceback.format_exception(caught.value))
    assert server.received == []


def test_a_certificate_of_another_host_is_rejected(start_mail: StartMail, plugins: MakePlugins) -> None:
    server = start_mail(names="elsewhere.example.com")
    with pytest.raises(RetryLater, match="certificate"):
        send(plugins(block(server)))
    assert server.received == []


def test_a_certificate_of_an_unknown_authority_is_rejected(
    start_mail: StartMail, plugins: MakePlugins, tmp_path: Path
) -> None:
    server = start_mail()
    text = block(server).replace(f"    ca_file: {server.ca_file}\n", "")
    with pytest.raises(RetryLater, match="certificate"):
        send(plugins(text))


@pytest.mark.slow
def test_a_missing_server_and_a_silent_one_are_retried(
    start_mail: StartMail, plugins: MakePlugins, silent_port: int
) -> None:
    server = start_mail()
    for port in (free_port(), silent_port):
        text = block(server, "timeout_seconds: 0.2").replace(str(server.port), str(port))
        with pytest.raises(RetryLater, match="localhost"):
            send(plugins(text))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{enabled: true}", "recipients"),
        ("{recipients: ['not an address']}", "recipients.*not an address"),
        ('{recipients: ["a@b\\nBcc: c@d"]}', "recipients.*Bcc"),
        ("{enabled: true, recipients: [a@b.c], username: x}", "password_file"),
        (
            "{enabled: true, recipients: [a@b.c], smtp_server: m, security: none, username: x, password: y}",
            "security",
        ),
        ("{recipients: ['jösé@example.com']}", "recipients.*ASCII"),
        ("{recipients: ['a@exa_mple。ä']}", "recipients"),
        ("{digest: '7:00'}", "digest.*7:00"),
        ("{on: [sucess]}", "sucess"),
    ],
)
def test_invalid_settings_are_a_configuration_error(configure: Configure, text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        configure(f"notifications: {{email: {text}}}")
