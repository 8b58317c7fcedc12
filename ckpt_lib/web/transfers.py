"""``Transfers``: the uploads and exports of a server."""

from __future__ import annotations

import asyncio

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.web.exports import Exports
from ckpt_lib.web.places import Places
from ckpt_lib.web.settings import ServerSettings
from ckpt_lib.web.uploads import Uploads

MOST_DOWNLOADS = 100
"""Each holds a chunk in memory, 8 MiB."""
_HOUR = 3_600.0


class Transfers:
    """What a server keeps in a folder of its own, so that checkpoints come and go through HTTP."""

    def __init__(self, settings: ServerSettings) -> None:
        folder, kept_seconds = settings.transfers_path(), settings.transfer_seconds
        self.uploads = Uploads(folder, kept_seconds=kept_seconds, most_bytes=settings.max_transfer_bytes)
        self.exports = Exports(folder, kept_seconds=kept_seconds, most_bytes=settings.max_transfer_bytes)
        self.downloads = Places(MOST_DOWNLOADS, "downloads")

    async def sweep_hourly(self) -> None:
        """Remove what has expired, now and every hour, until this is cancelled."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(_HOUR)

    def sweep(self) -> None:
        """Remove what has expired."""
        for folders in (self.uploads.folders, self.uploads.imports, self.exports.folders):
            with failures_logged("removing expired transfers"):
                folders.sweep()
