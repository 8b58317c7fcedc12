"""Tokens that allow reading, writing and deleting. Only digests are stored, so that the file gives no access.

A token is 32 random bytes: there is nothing to guess, so that a plain SHA-256 of it is as good as a slow digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError

Scope = Literal["read", "write", "delete"]
SCOPES: tuple[Scope, ...] = ("read", "write", "delete")
"""Each includes those before it."""
PREFIX = "ckpt_"
"""So that programs that look for secrets in code recognise one."""

_NAME_PATTERN = r"^[\w][\w .@-]{0,99}$"


class Token(BaseModel):
    """The record of a token, with its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME_PATTERN, description="The name in the audit log.")
    scope: Scope
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires_at: AwareDatetime | None = Field(default=None, description="When it stops being valid; None: never.")

    @classmethod
    def of(cls, text: str, name: str, scope: Scope, expires_at: datetime | None = None) -> Self:
        """Return the record of the token ``text``."""
        return cls(name=name, scope=scope, sha256=_digest(text), expires_at=expires_at)

    def matches(self, text: str) -> bool:
        """Tell whether this is the token ``text``, in the same time whatever differs."""
        return hmac.compare_digest(self.sha256, _digest(text))

    def has_expired(self) -> bool:
        """Tell whether its time is over."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    def allows(self, scope: Scope) -> bool:
        """Tell whether its scope includes ``scope``."""
        return SCOPES.index(scope) <= SCOPES.index(self.scope)


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: tuple[Token, ...] = ()


class TokenFile:
    """The tokens in a file, which only its owner may read. It is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int] | None, tuple[Token, ...]] = (None, ())
        """The version of the file that was read last, and its tokens."""

    def create(self, name: str, scope: Scope, *, lifetime: timedelta | None = None) -> str:
        """Add a token and return its text, which is not stored.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a name that exists or cannot be used.
        """
        text = new_token()
        expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
        try:
            token = Token.of(text, name, scope, expires_at)
        except ValidationError as error:
            raise ConfigError(
                f"{shown(name)} cannot name a token", expected="up to 100 letters, digits, blanks and . _ @ -"
            ) from error
        with self._locked():
            if any(other.name == name for other in self.tokens()):
                raise ConfigError(f"there is a token {shown(name)} already", hint="Remove it, or choose another name.")
            self._write((*self.tokens(), token))
        return text

    def remove(self, name: str) -> Token:
        """Revoke a token. Raises :class:`~ckpt_lib.errors.ConfigError` if there is none of this name."""
        with self._locked():
            kept = tuple(token for token in self.tokens() if token.name != name)
            found = next((token for token in self.tokens() if token.name == name), None)
            if found is None:
                names = ", ".join(token.name for token in kept)
                raise ConfigError(f"there is no token {shown(name)}", expected=f"one of {names or 'none'}")
            self._write(kept)
        return found

    def find(self, text: str) -> Token | None:
        """Return the token with this text, or ``None``. Raises as :meth:`tokens`."""
        return next((token for token in self.tokens() if token.matches(text)), None)

    def tokens(self) -> tuple[Token, ...]:
        """Return all tokens. Raises :class:`~ckpt_lib.errors.ConfigError` if the file is damaged."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return ()
        version = (status.st_mtime_ns, status.st_ino)
        read_version, tokens = self._known  # at once: another thread may be reading the file anew
        if version != read_version:
            tokens = self._read()
            self._known = (version, tokens)
        return tokens

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the file between reading and writing it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> tuple[Token, ...]:
        try:
            return _Stored.model_validate_json(self._path.read_bytes()).tokens
        except (ValidationError, OSError) as error:
            raise ConfigError(
                "the token file cannot be read",
                path=str(self._path),
                hint="Remove the file, and create tokens anew with `ckpt token NAME`.",
            ) from error

    def _write(self, tokens: tuple[Token, ...]) -> None:
        """Replace the file at once: a crash leaves the one before or the new one."""
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")  # with mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{_Stored(tokens=tokens).model_dump_json(indent=2)}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self._path)


def new_token() -> str:
    """Return the text of a new token."""
    return PREFIX + secrets.token_urlsafe(32)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
