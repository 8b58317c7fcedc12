"""``ServerSettings``: the store, the address and the tokens of a server."""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.errors import ConfigError
from ckpt_lib.store import location, open_store

PREFIX = "/api/v1"
"""What the addresses of the API begin with."""


class ServerSettings(BaseModel):
    """The settings of one server. With neither ``tokens_path`` nor ``run_token``, every request is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: CheckpointConfig = Field(default_factory=CheckpointConfig, description="The store, and its backups.")
    host: str = Field(default="127.0.0.1", description="The address to listen at; by default, this machine alone.")
    port: int = Field(default=8300, ge=0, lt=2**16, description="0 chooses a free one.")
    tokens_path: Path | None = Field(default=None, description="The file with the digests of tokens.")
    run_token: SecretStr | None = Field(
        default=None, description="A token that allows everything, kept in memory beside those of the file."
    )
    read_only: bool = Field(default=False, description="Refuse whatever changes the store, whatever the token.")
    requests_per_second: float | None = Field(
        default=100.0, gt=0, description="How many requests of a token are answered; None: any number."
    )
    runner: str = Field(
        default="threads", description="What does jobs: threads of the server, or a runner that is installed."
    )
    jobs_folder: Path | None = Field(
        default=None, description="Where jobs are written down; by default, a folder of the user for each store."
    )

    transfers_folder: Path | None = Field(
        default=None, description="Where uploads and exports are kept; by default, a folder within that of the jobs."
    )
    max_transfer_bytes: int = Field(
        default=2**40, ge=0, description="What uploads may take in all, and exports as well."
    )
    transfer_seconds: float = Field(
        default=86_400.0, gt=0, description="How long an upload or export is kept after its last change."
    )

    def transfers_path(self) -> Path:
        """Return the folder where uploads and exports are kept."""
        return self.transfers_folder or self.jobs_path() / "transfers"

    def jobs_path(self) -> Path:
        """Return the folder where jobs are written down."""
        if self.jobs_folder is not None:
            return self.jobs_folder
        store = location(open_store(self.config.checkpoint_dir))
        return user_state_path("ckpt") / "jobs" / hashlib.sha256(store.encode()).hexdigest()[:16]

    def check_reachable(self) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` where other machines could reach a server without tokens."""
        if self.tokens_path is None and self.run_token is None and not is_loopback(self.host):
            raise ConfigError(
                "other machines could change the store without a token",
                expected="the host 127.0.0.1, or a file of tokens",
                got=self.host,
                hint="`ckpt token NAME` creates a token.",
            )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address. A name other than localhost may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
