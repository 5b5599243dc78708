"""An e-mail and its way to the server: what the plugin ``email`` needs once it has something to send."""

from __future__ import annotations

import smtplib
import socket
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from jinja2 import Environment

from eemtcleanupd.hookspecs import RetryLater
from eemtcleanupd.notifiers.email import EmailSettings
from eemtcleanupd.notifiers.messages import Message, render
from eemtcleanupd.report.plots import trend_png

_PORTS = {"none": 25, "starttls": 587, "tls": 465}
_TEMPLATE = """\
<!doctype html><html><body style="font-family:sans-serif;color:#222">
<h2 style="color:{{ color }}">{{ words.headline }}</h2>
<table cellpadding="4">
{% for title, value in words.facts %}<tr><td><b>{{ title }}</b></td><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for title, lines in words.lists %}<h3>{{ title }}</h3><ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}</ul>
{% endfor %}{% if picture %}<h3>Storage trend</h3>
<img src="cid:{{ picture }}" alt="Storage of the last 90 days">
{% endif %}</body></html>
"""
_COLORS = {"good": "#1a7f37", "warning": "#9a6700", "danger": "#cf222e"}


def send(event: object, settings: EmailSettings) -> str:
    """Send an event to all recipients and return what came of it.

    Raises:
        RetryLater: no connection, a 4xx answer, or a certificate that is not trusted.
        RuntimeError: an answer that another attempt would not change.
    """
    message = compose(render(event), settings)
    try:
        with _connected(settings) as server:
            if settings.username and settings.password:
                server.login(settings.username, settings.password.get_secret_value())
            refused = server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        words = f"no recipient was accepted ({', '.join(map(str, codes))})"
        if all(400 <= code < 500 for code in codes):
            raise RetryLater(words) from None
        raise RuntimeError(words) from None
    except smtplib.SMTPResponseException as error:
        words = f"the server answered {error.smtp_code} {_text(error.smtp_error)}"
        if 400 <= error.smtp_code < 500 or error.smtp_code < 0:
            raise RetryLater(words) from None
        raise RuntimeError(words) from None
    except smtplib.SMTPNotSupportedError as error:
        raise RuntimeError(f"the server cannot do what is asked: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise RetryLater(f"the server's certificate is not trusted: {error.verify_message}") from None
    except (smtplib.SMTPException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RetryLater(
            f"no connection to {settings.smtp_server} ({reason or type(error).__name__})"
        ) from None
    if refused:
        return f"sent, but {len(refused)} of {len(settings.recipients)} recipients were refused"
    return f"sent to {len(settings.recipients)} recipients by {settings.smtp_server}"


def compose(words: Message, settings: EmailSettings) -> EmailMessage:
    """Return the message: plain text, HTML, and the trend as an inline picture when there is one."""
    message = EmailMessage()
    host = socket.getfqdn()
    message["Subject"] = words.headline
    message["From"] = settings.sender or f"eemtcleanupd@{host}"
    message["To"] = ", ".join(settings.recipients)
    if settings.reply_to:
        message["Reply-To"] = settings.reply_to
    message["Date"] = formatdate(localtime=True)
    message["Message-ID"] = make_msgid(domain=host)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    underline = "=" * len(words.headline)
    message.set_content(f"{words.headline}\n{underline}\n\n{words.text()}\n")

    picture = trend_png(words.storage.trend) if words.storage is not None else None
    image_id = make_msgid(domain=host)
    html = Environment(autoescape=True).from_string(_TEMPLATE)
    message.add_alternative(
        html.render(words=words, color=_COLORS[words.mood], picture=image_id[1:-1] if picture else None),
        subtype="html",
    )
    if picture is not None:
        part: Any = message.get_payload()[1]  # type: ignore[index]
        part.add_related(
            picture, "image", "png", cid=image_id, disposition="inline", filename="storage_trend.png"
        )
    return message


def _connected(settings: EmailSettings) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=settings.ca_file and str(settings.ca_file))
    safety, host = settings.safety, settings.smtp_server
    port = settings.smtp_port or _PORTS[safety]
    if safety == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=settings.timeout_seconds, context=context)
    server = smtplib.SMTP(host, port, timeout=settings.timeout_seconds)
    try:
        if safety == "starttls":
            server.starttls(context=context)
    except BaseException:
        server.close()
        raise
    return server


def _text(answer: bytes | str) -> str:
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
