"""Reports by e-mail: text and HTML, with the storage trend as a picture where matplotlib is installed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, Strict, model_validator

from eemtcleanupd.config.types import FilePath, Text
from eemtcleanupd.hookspecs import NotifierSettings, hookimpl

_LOCAL = ("localhost", "127.0.0.1", "::1")


def _address(value: str) -> str:
    from email.headerregistry import Address

    try:
        Address(addr_spec=value)
    except (ValueError, IndexError):
        raise ValueError("write an address such as admin@example.com") from None
    return value


MailAddress = Annotated[Text, AfterValidator(_address)]


class EmailSettings(NotifierSettings, strict=True):
    """Reports by e-mail."""

    enabled: bool = Field(False, description="Whether to send e-mail.")
    smtp_server: Text = Field("localhost", description="Host name of the mail server.")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Its port; null: 587 with starttls, 465 with tls, 25 with none."
    )
    security: Literal["starttls", "tls", "none"] | None = Field(
        None, description="starttls, tls or none; null: none to this machine, starttls to any other."
    )
    ca_file: FilePath | None = Field(None, description="Certificates to trust; null: the system's.")
    username: Text | None = Field(None, description="Login name; null: no login.")
    password: SecretStr | None = Field(None, description="Its password, a secret; may be ${NAME}.")
    password_file: FilePath | None = Field(
        None, description="File that holds the password, or its name among systemd's credentials."
    )
    sender: MailAddress | None = Field(None, description="From; null: eemtcleanupd@ this machine's name.")
    reply_to: MailAddress | None = Field(None, description="Reply-To; null: none.")
    recipients: Annotated[tuple[MailAddress, ...], Strict(False)] = Field(
        (), description="Addresses that get the report."
    )

    @model_validator(mode="after")
    def _can_send(self) -> Self:
        if self.enabled and not self.recipients:
            raise ValueError("e-mail is enabled and needs recipients")
        if self.enabled and self.username and self.password is None and self.password_file is None:
            raise ValueError("username needs password or password_file")
        if self.enabled and self.username and self.safety == "none" and self.smtp_server not in _LOCAL:
            raise ValueError("a password is not sent without encryption: write security: starttls or tls")
        return self

    @property
    def safety(self) -> str:
        """What counts: ``starttls``, ``tls`` or ``none``."""
        return self.security or ("none" if self.smtp_server in _LOCAL else "starttls")


@hookimpl
def register_settings() -> type[EmailSettings]:
    return EmailSettings


@hookimpl
def notify(event: object, settings: EmailSettings) -> str:
    from eemtcleanupd.notifiers.smtp import send

    return send(event, settings)
