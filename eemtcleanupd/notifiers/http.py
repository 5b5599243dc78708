"""One POST over HTTP: what is worth another attempt, and errors that hold no secret."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pydantic import SecretStr

from eemtcleanupd.hookspecs import RetryLater

_MAX_ANSWER_BYTES = 4096
_WORTH_A_RETRY = {408, 421, 425, 429}


class RefusedError(Exception):
    """The other side said no; to try again is of no use."""


def post(
    url: SecretStr,
    body: bytes,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float,
) -> str:
    """POST a body and return the answer in words, such as ``200 ok``.

    Redirects are not followed: they would carry what is told here to somebody else.

    Raises:
        RetryLater: the connection failed, or the answer was 408, 421, 425, 429 or 5xx.
        RefusedError: any other answer, or a URL that cannot be.
    """
    import requests

    try:
        response = requests.post(
            url.get_secret_value(),
            data=body,
            headers={"Content-Type": content_type, "User-Agent": "eemtcleanupd", **(headers or {})},
            timeout=timeout_seconds,
            allow_redirects=False,
            stream=True,
        )
        with response:
            raw = response.raw.read(_MAX_ANSWER_BYTES, decode_content=True)
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
    ):
        raise RefusedError("its URL is not one that can be used") from None
    except (requests.RequestException, OSError) as error:
        # Not chained, and never as text: exceptions of requests hold the URL, which is the secret.
        raise RetryLater(_reason(error)) from None
    words = f"{response.status_code} {raw.decode('utf-8', 'replace').strip() or response.reason}"[:300]
    if response.ok and response.status_code < 300:
        return words
    if response.status_code in _WORTH_A_RETRY or response.status_code >= 500:
        raise RetryLater(f"it answered {words}", _retry_after(response.headers.get("Retry-After")))
    raise RefusedError(f"it answered {words}")


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that Retry-After means, a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _reason(error: BaseException) -> str:
    """Return what lies under an exception of requests, in words of our own."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted, or TLS failed"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror and not isinstance(seen, requests.RequestException):
            return f"no connection ({seen.strerror})"
        inner = getattr(seen, "reason", None) or (seen.args[0] if seen.args else None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return "the connection failed"
