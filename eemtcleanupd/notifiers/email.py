"""Notifier ``email``: settings and hook; the message is made in ``smtp.py``, which is imported late."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, Strict, model_validator

from eemtcleanupd.config.types import FilePath, Text
from eemtcleanupd.events import Event
from eemtcleanupd.hookspecs import Digest, NotifierSettings, hookimpl

_LOCAL = ("localhost", "127.0.0.1", "::1")


def _address(value: str) -> str:
    from email.headerregistry import Address

    try:
        address = Address(addr_spec=value)
        if address.domain.isascii():
            return value
        import idna

        # As DNS has it, because a mail server does not need to know SMTPUTF8 (RFC 6531) for that.
        return f"{value.rpartition('@')[0]}@{idna.encode(address.domain, uts46=True).decode('ascii')}"
    except (ValueError, IndexError):
        raise ValueError("write an address such as admin@example.com, in ASCII before the @") from None


MailAddress = Annotated[Text, AfterValidator(_address)]


class EmailSettings(NotifierSettings, strict=True):
    """Settings of the e-mail notifier."""

    enabled: bool = Field(False, description="Whether to send e-mail.")
    smtp_server: Text = Field("localhost", description="Host name of the mail server.")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Port of the mail server; null: 587 with starttls, 465 with tls, 25 with none."
    )
    security: Literal["starttls", "tls", "none"] | None = Field(
        None, description="starttls, tls or none; null: none for this machine, starttls for any other."
    )
    ca_file: FilePath | None = Field(
        None, description="File of trusted certificates; null: those of the system."
    )
    username: Text | None = Field(None, description="User name of the login; null: no login.")
    password: SecretStr | None = Field(None, description="Password of the login, secret; can be ${NAME}.")
    password_file: FilePath | None = Field(
        None, description="File that contains the password, or the name of a systemd credential."
    )
    sender: MailAddress | None = Field(
        None, description="From address; null: eemtcleanupd@ and the name of this machine."
    )
    reply_to: MailAddress | None = Field(None, description="Reply-To address; null: none.")
    recipients: Annotated[tuple[MailAddress, ...], Strict(False)] = Field(
        (), description="Addresses that receive the reports."
    )

    @model_validator(mode="after")
    def _can_send(self) -> Self:
        if self.enabled and not self.recipients:
            raise ValueError("e-mail is enabled, so it needs recipients")
        if self.enabled and self.username and self.password is None and self.password_file is None:
            raise ValueError("username needs password or password_file")
        if self.enabled and self.username and self.encryption == "none" and self.smtp_server not in _LOCAL:
            raise ValueError("a password is not sent without encryption: set security to starttls or tls")
        return self

    @property
    def encryption(self) -> str:
        """The effective value of ``security``: ``starttls``, ``tls`` or ``none``."""
        return self.security or ("none" if self.smtp_server in _LOCAL else "starttls")


@hookimpl
def register_settings() -> type[EmailSettings]:
    return EmailSettings


@hookimpl
def notify(event: Event | Digest, settings: EmailSettings, recipients: tuple[str, ...]) -> str:
    from eemtcleanupd.notifiers.smtp import send

    return send(event, settings, recipients)
