"""Bearer tokens: named, with a scope, kept as hashes.

A token has 256 random bits, so a fast hash is enough: there is nothing to guess by.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from eemtcleanupd.config import Config
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import write_atomic

Scope = Literal["read", "clean"]
SCOPES: Final = ("read", "clean")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token without itself; times are ISO 8601 in UTC."""

    name: str
    scope: Scope
    sha256: str
    created_at: str
    expires_at: str | None = None

    def is_expired(self, now: datetime) -> bool:
        """Tell whether its time is over."""
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= now


def find(tokens: Iterable[Token], secret: str) -> Token | None:
    """Return the token that a secret is of, in a time that does not depend on where they differ."""
    digest = _digest(secret)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            found = token
    return found


class TokenFile:
    """The file of the tokens, read again when it changes.

    Args:
        path: where it is; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def all(self) -> tuple[Token, ...]:
        """Return all tokens, expired ones too.

        Raises:
            ConfigError: the file cannot be read, or others can write to it.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"the tokens {self.path} cannot be read: {error.strerror}") from error
        if status.st_mode & 0o022 or status.st_uid not in {os.geteuid(), 0}:
            raise ConfigError(
                f"the tokens {self.path} could be changed by others: make them ours alone (chmod 600)"
            )
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._tokens = self._read()
            self._stamp = stamp
        return self._tokens

    def _read(self) -> tuple[Token, ...]:
        try:
            return tuple(Token(**each) for each in json.loads(self.path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"the tokens {self.path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.path} is not a file of tokens: {error}") from error

    def add(self, name: str, scope: Scope, now: datetime, days: float | None = None) -> str:
        """Add a token and return it; it cannot be had a second time.

        Raises:
            ConfigError: the name is taken or cannot be one, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a name: up to 64 letters, digits and . _ @ -")
        secret = f"eemt_{secrets.token_urlsafe(32)}"
        with self._changing() as tokens:
            if any(token.name == name for token in tokens):
                raise ConfigError(f"there is a token {name} already: revoke it first, or take another name")
            expires = None if days is None else (now + timedelta(days=days)).isoformat()
            tokens.append(Token(name, scope, _digest(secret), now.isoformat(), expires))
        return secret

    def revoke(self, name: str) -> bool:
        """Take a token away; False when there was none."""
        with self._changing() as tokens:
            kept = [token for token in tokens if token.name != name]
            found = len(kept) < len(tokens)
            tokens[:] = kept
        return found

    @contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                tokens = list(self.all())
                yield tokens
                content = json.dumps([asdict(token) for token in tokens], indent=2)
                write_atomic(self.path, content.encode(), durable=True)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigError(f"the tokens {self.path} cannot be written: {error.strerror}") from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def require_tokens(config: Config) -> None:
    """Refuse to serve where nobody could prove who they are.

    Raises:
        ConfigError: there is no file of tokens, or none in it.
    """
    path = config.api.tokens_file
    if path is None:
        raise ConfigError(
            "api.enabled needs api.tokens_file (or api.listen: unix:/path, where the socket's mode says who "
            "may): name a file, then `eemtcleanupd token add NAME --scope clean`"
        )
    if not TokenFile(path).all():
        raise ConfigError(
            f"api.enabled, but there is no token in {path}: `eemtcleanupd token add NAME --scope clean`"
        )
