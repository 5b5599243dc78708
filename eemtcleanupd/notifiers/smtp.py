"""E-mails of the notifier ``email``: text and HTML with the storage trend, sent over SMTP."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Collection, Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from jinja2 import Environment

from eemtcleanupd.events import Event, Severity
from eemtcleanupd.formatting import plural
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.notifiers.email import EmailSettings
from eemtcleanupd.notifiers.messages import LINK_TITLE, Message, more_text, render
from eemtcleanupd.report.plots import trend_png

_Refused = dict[str, tuple[int, bytes]]
_PORTS = {"none": 25, "starttls": 587, "tls": 465}
_TEMPLATE = """\
<!doctype html><html><body style="font-family:sans-serif;color:#222">
<h2 style="color:{{ color }}">{{ message.headline }}</h2>
<table cellpadding="4">
{% for title, value in message.facts %}<tr><td><b>{{ title }}</b></td><td>{{ value }}</td></tr>
{% endfor %}</table>
{% if message.link %}<p>{{ link_title }}: <a href="{{ message.link }}">{{ message.link }}</a></p>
{% endif %}{% for title, lines, more in message.lists %}<h3>{{ title }}</h3><ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}{% if more and message.link %}<li><a href="{{ message.link }}">{{ more_text(more) }}</a></li>
{% elif more %}<li>{{ more_text(more) }}</li>
{% endif %}</ul>
{% endfor %}{% if image_id %}<h3>Storage trend</h3>
<img src="cid:{{ image_id }}" alt="Storage of the last 90 days">
{% endif %}</body></html>
"""
_COLORS = {Severity.GOOD: "#1a7f37", Severity.WARNING: "#9a6700", Severity.DANGER: "#cf222e"}


def send(event: Event | Digest, settings: EmailSettings, only: Collection[str] = ()) -> str:
    """Send an event to the recipients of the settings and return the result as text.

    Args:
        event: the event.
        settings: the server and the recipients.
        only: those who have not received it, from an earlier attempt; empty means all.

    Raises:
        RetryLater: no connection, a 4xx reply, or an untrusted certificate.  If the server accepted the mail
            for some recipients, the error names the others.
        RuntimeError: any other failure, which a retry cannot change.
    """
    # Each once: smtplib counts addresses, so two refusals of one address would look like one success.
    recipients = list(dict.fromkeys(to for to in settings.recipients if not only or to in only))
    if not recipients:
        return "the remaining recipients are no longer in the configuration"
    mail = compose(render(event, settings), settings)
    try:
        refused = _transfer(mail, settings, recipients)
    except smtplib.SMTPResponseException as error:
        reason = f"the server answered {error.smtp_code} {_text(error.smtp_error)}"
        if 400 <= error.smtp_code < 500 or error.smtp_code < 0:
            raise RetryLater(reason) from None
        raise RuntimeError(reason) from None
    except smtplib.SMTPNotSupportedError as error:
        raise RuntimeError(f"the server does not support a required command: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise RetryLater(f"the server's certificate is not trusted: {error.verify_message}") from None
    except (smtplib.SMTPException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RetryLater(
            f"no connection to {settings.smtp_server} ({reason or type(error).__name__})"
        ) from None
    if refused:
        accepted = len(recipients) - len(refused)
        answers = ", ".join(f"{name}: {code} {_text(text)}" for name, (code, text) in refused.items())
        reason = f"the server accepted {accepted} of {plural(len(recipients), 'recipient')} ({answers})"
        if any(400 <= code < 500 for code, _ in refused.values()):
            raise RetryLater(reason, recipients=tuple(refused))
        raise RuntimeError(reason)
    return f"sent to {plural(len(recipients), 'recipient')} by {settings.smtp_server}"


def _transfer(mail: EmailMessage, settings: EmailSettings, recipients: Sequence[str]) -> _Refused:
    """Hand the mail to the server; return the recipients that it refused, with its answers."""
    server = _connect(settings)
    try:
        if settings.username and settings.password:
            server.login(settings.username, settings.password.get_secret_value())
        try:
            refused: _Refused = server.send_message(mail, to_addrs=recipients)
        except smtplib.SMTPRecipientsRefused as error:
            # No recipient gets the mail, even if the connection closed before all recipients were sent.
            rest = dict.fromkeys(recipients, (421, b"the server closed the connection"))
            refused = {**rest, **error.recipients} if _is_closed(server) else error.recipients
        # Accepted: whatever the server answers from here on, it has the mail.
        with suppress(smtplib.SMTPException, OSError):
            server.quit()
        return refused
    finally:
        server.close()


def _is_closed(server: smtplib.SMTP) -> bool:
    return server.sock is None


def compose(message: Message, settings: EmailSettings) -> EmailMessage:
    """Return the e-mail: plain text, HTML, and the storage trend as an inline image if there is one."""
    mail = EmailMessage()
    host = socket.getfqdn()
    mail["Subject"] = message.headline
    mail["From"] = settings.sender or f"eemtcleanupd@{host}"
    mail["To"] = ", ".join(settings.recipients)
    if settings.reply_to:
        mail["Reply-To"] = settings.reply_to
    mail["Date"] = formatdate(localtime=True)
    mail["Message-ID"] = make_msgid(domain=host)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    underline = "=" * len(message.headline)
    mail.set_content(f"{message.headline}\n{underline}\n\n{message.text()}\n")

    image = trend_png(message.storage.trend) if message.storage is not None else None
    image_id = make_msgid(domain=host)
    html = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            message=message,
            link_title=LINK_TITLE,
            more_text=more_text,
            color=_COLORS[message.severity],
            image_id=image_id[1:-1] if image else None,
        )
    )
    mail.add_alternative(html, subtype="html")
    if image is not None:
        part: Any = mail.get_payload()[1]  # type: ignore[index]
        part.add_related(
            image, "image", "png", cid=image_id, disposition="inline", filename="storage_trend.png"
        )
    return mail


def _connect(settings: EmailSettings) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=settings.ca_file and str(settings.ca_file))
    encryption, host = settings.encryption, settings.smtp_server
    port = settings.smtp_port or _PORTS[encryption]
    if encryption == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=settings.timeout_seconds, context=context)
    server = smtplib.SMTP(host, port, timeout=settings.timeout_seconds)
    try:
        if encryption == "starttls":
            server.starttls(context=context)
    except BaseException:
        server.close()
        raise
    return server


def _text(reply: bytes | str) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
