"""Token file: bearer tokens with a name, a scope and an expiry time, stored as hashes.

A token has 256 random bits, so a fast hash is enough: it cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from eemtcleanupd.config import Config
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import locked, open_folder, open_regular, write_atomic

Scope = Literal["read", "clean"]
SCOPES: Final = ("read", "clean")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token's entry in the file; times are ISO 8601 in UTC."""

    name: str
    scope: Scope
    sha256: str
    created_at: str
    expires_at: str | None = None

    def is_expired(self, now: datetime) -> bool:
        """Return whether the token has expired."""
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= now


def find_token(tokens: Iterable[Token], secret: str) -> Token | None:
    """Return the token with this secret; the time that it takes does not depend on the hashes."""
    digest = _digest(secret)
    matches = [token for token in tokens if hmac.compare_digest(token.sha256, digest)]
    return matches[-1] if matches else None


class TokenFile:
    """The token file, which need not exist; it is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def all(self) -> tuple[Token, ...]:
        """Return all tokens, also expired ones.

        Raises:
            ConfigError: the file cannot be read, or other users can write it.
        """
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o022 or status.st_uid not in {os.geteuid(), 0}:
                    raise ConfigError(
                        f"Other users can change the token file {self.path}. Make it your own, with mode 600 "
                        "(chown, chmod 600)."
                    )
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                if stamp != self._stamp:
                    entries = json.loads(file.read())
                    self._tokens, self._stamp = tuple(Token(**entry) for entry in entries), stamp
            return self._tokens
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"Cannot read the token file {self.path}: {error.strerror}.") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.path} is not a valid token file: {error}.") from error

    def add(
        self,
        name: str,
        scope: Scope,
        now: datetime,
        days: float | None = None,
        *,
        record: Callable[[], object] = lambda: None,
    ) -> str:
        """Add a token and return its secret, which is not stored.

        ``record`` is called before the file changes; if it raises, nothing changes.

        Raises:
            ConfigError: the name is invalid or in use, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"Invalid token name {name!r}. Use up to 64 letters, digits and . _ @ -")
        secret = f"eemt_{secrets.token_urlsafe(32)}"
        with self._locked_tokens() as tokens:
            if any(token.name == name for token in tokens):
                raise ConfigError(f"The token {name} already exists. Revoke it, or choose another name.")
            expires = None if days is None else (now + timedelta(days=days)).isoformat()
            tokens.append(Token(name, scope, _digest(secret), now.isoformat(), expires))
            record()
        return secret

    def revoke(self, name: str) -> bool:
        """Remove a token; return whether it existed."""
        with self._locked_tokens() as tokens:
            count = len(tokens)
            tokens[:] = [token for token in tokens if token.name != name]
        return len(tokens) < count

    @contextmanager
    def _locked_tokens(self) -> Iterator[list[Token]]:
        """Yield the tokens and write the changed list, under a lock."""
        try:
            with open_folder(self.path.parent, create=0o777):
                pass
            with locked(self.path.with_name(f"{self.path.name}.lock"), wait_seconds=_LOCK_SECONDS):
                tokens = list(self.all())
                yield tokens
                content = json.dumps([asdict(token) for token in tokens], indent=2)
                write_atomic(self.path, content.encode(), durable=True)
        except OSError as error:
            raise ConfigError(f"Cannot write the token file {self.path}: {error.strerror}.") from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def require_tokens(config: Config) -> None:
    """Check that clients of a network address can be authenticated.

    Raises:
        ConfigError: no token file is configured, or it has no token.
    """
    path = config.api.tokens_file
    if path is None:
        raise ConfigError(
            "api.enabled needs api.tokens_file, unless api.listen is a Unix socket (unix:/path). Set it, "
            "then run `eemtcleanupd token add NAME --scope clean`."
        )
    if not TokenFile(path).all():
        raise ConfigError(
            f"api.enabled needs a token, but {path} has none. "
            "Run `eemtcleanupd token add NAME --scope clean`."
        )
