"""HTTP POST for notifiers: decides which failures to retry, and keeps secrets out of errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import SecretStr

from eemtcleanupd.hookspecs import RetryLater

if TYPE_CHECKING:
    import requests

_MAX_RESPONSE_BYTES = 4096
_RETRY_STATUS_CODES = {408, 421, 425, 429}


class RefusedError(Exception):
    """The receiver rejected the message, so a retry is useless."""


def post(
    url: SecretStr,
    body: bytes,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float,
    success_text: str | None = None,
) -> str:
    """POST a body and return the response as text, such as ``200 ok``.

    Redirects are not followed, because they would send the message to another party.

    Raises:
        RetryLater: the connection failed, the status is 408, 421, 425, 429 or 5xx, or the text that must be
            ``success_text`` is not readable.
        RefusedError: the status is another error, the URL is invalid, or the text of the response is not
            ``success_text``.
    """
    import requests
    import urllib3

    try:
        response = requests.post(
            url.get_secret_value(),
            data=body,
            headers={"Content-Type": content_type, "User-Agent": "eemtcleanupd", **(headers or {})},
            timeout=timeout_seconds,
            allow_redirects=False,
            stream=True,
        )
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
        urllib3.exceptions.LocationParseError,
    ):
        raise RefusedError("the URL is invalid") from None
    except (requests.RequestException, OSError) as error:
        # Not chained, and never as text: exceptions of requests contain the URL, which is secret.
        raise RetryLater(_reason(error)) from None
    with response:
        answer = _text_of(response)
    text = f"{response.status_code} {answer or response.reason}"[:300]
    if response.ok and response.status_code < 300:
        if success_text is not None and answer is None:
            raise RetryLater(f"the receiver answered {text}, and its text is not readable")
        if success_text not in {None, answer}:
            raise RefusedError(f"the receiver answered {text}, not {success_text}. Check the URL")
        return text
    if response.status_code in _RETRY_STATUS_CODES or response.status_code >= 500:
        raise RetryLater(f"the receiver answered {text}", _retry_after(response.headers.get("Retry-After")))
    raise RefusedError(f"the receiver answered {text}")


def _text_of(response: requests.Response) -> str | None:
    """Return the text of a response, None if it is not readable; the status alone decides then."""
    import urllib3

    try:
        raw = response.raw.read(_MAX_RESPONSE_BYTES, decode_content=True)
    except (urllib3.exceptions.HTTPError, OSError):  # cut off, in an invalid encoding, or too slow
        return None
    return raw.decode("utf-8", "replace").strip()


def _retry_after(value: str | None) -> float | None:
    """Return the seconds in Retry-After, which is a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _reason(error: BaseException) -> str:
    """Return the cause of an exception of requests, without its text, which contains the URL."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "the certificate is not trusted, or TLS failed"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "connection timed out"
    if isinstance(error, requests.exceptions.Timeout):
        return "no response in time"
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror and not isinstance(seen, requests.RequestException):
            return f"no connection ({seen.strerror})"
        inner = getattr(seen, "reason", None) or (seen.args[0] if seen.args else None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return "the connection failed"
