"""Tokens: who may read, write and delete. Only their digests are stored, so that the file gives no access away.

A token is 32 random bytes: there is nothing to guess, so that a plain SHA-256 of it is as good as a slow digest.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError

Scope = Literal["read", "write", "delete"]
SCOPES: tuple[Scope, ...] = ("read", "write", "delete")
"""Each takes in those before it."""
PREFIX = "ckpt_"
"""So that programs that look for secrets in code recognise one."""

_NAME_PATTERN = r"^[\w][\w .@-]{0,99}$"


class Token(BaseModel):
    """What is stored of a token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME_PATTERN, description="Who has it, for the log of changes.")
    scope: Scope
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires_at: AwareDatetime | None = Field(default=None, description="When it stops being valid; None: never.")

    def allows(self, scope: Scope, now: datetime) -> bool:
        """Tell whether it is still valid, and is enough for what needs ``scope``."""
        is_valid = self.expires_at is None or now < self.expires_at
        return is_valid and SCOPES.index(scope) <= SCOPES.index(self.scope)


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: tuple[Token, ...] = ()


class TokenFile:
    """The tokens in a file, which only its owner may read. It is read anew when it changes: a token taken back ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def create(self, name: str, scope: Scope, *, lifetime: timedelta | None = None) -> str:
        """Add a token and return it; nobody can ask for it later. Raises :class:`~ckpt_lib.errors.ConfigError`."""
        if any(token.name == name for token in self.tokens()):
            raise ConfigError(f"there is a token {shown(name)} already", hint="Remove it, or choose another name.")
        text = PREFIX + secrets.token_urlsafe(32)
        expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
        try:
            token = Token(name=name, scope=scope, sha256=_digest(text), expires_at=expires_at)
        except ValidationError as error:
            raise ConfigError(
                f"{shown(name)} cannot name a token", expected="up to 100 letters, digits, blanks and . _ @ -"
            ) from error
        self._write((*self.tokens(), token))
        return text

    def remove(self, name: str) -> Token:
        """Take a token back. Raises :class:`~ckpt_lib.errors.ConfigError` for one that is not there."""
        found = next((token for token in self.tokens() if token.name == name), None)
        if found is None:
            names: Collection[str] = [token.name for token in self.tokens()]
            raise ConfigError(f"there is no token {shown(name)}", expected=f"one of {', '.join(names) or 'none'}")
        self._write(tuple(token for token in self.tokens() if token.name != name))
        return found

    def find(self, text: str) -> Token | None:
        """Return the token whose text this is. Takes as long whatever is wrong with it."""
        digest, found = _digest(text), None
        for token in self.tokens():
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def tokens(self) -> tuple[Token, ...]:
        """Return all tokens. Raises :class:`~ckpt_lib.errors.ConfigError` for a file that is none of tokens."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return ()
        version = (status.st_mtime_ns, status.st_ino)
        if version != self._read_at:
            self._tokens, self._read_at = self._read(), version
        return self._tokens

    def _read(self) -> tuple[Token, ...]:
        try:
            return _Stored.model_validate_json(self._path.read_bytes()).tokens
        except (ValidationError, OSError) as error:
            raise ConfigError(
                "the file of tokens cannot be read", path=str(self._path), hint="`ckpt token create` makes one."
            ) from error

    def _write(self, tokens: tuple[Token, ...]) -> None:
        """Replace the file at once: a crash leaves the one before or the new one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")  # with mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{_Stored(tokens=tokens).model_dump_json(indent=2)}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self._path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
