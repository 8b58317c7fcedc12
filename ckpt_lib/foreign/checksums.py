"""The checksums within files of ``torch.save``: they tell damage where there are no digests to compare with."""

from __future__ import annotations

import zipfile

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.stream import VerifiedFile

_ZIP_START = b"PK\x03\x04"


def check_checksums(files: FoundFiles) -> None:
    """Compare the CRC-32 of each record of the files that are zip archives, as those of ``torch.save`` are.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for a damaged one. Archives that name more bytes than they
    have, or compress them, are not torch's, and nothing is read of these.
    """
    for name in files.names:
        if files.sizes_bytes[name] and files.start(name).startswith(_ZIP_START):
            try:
                damaged = _damaged_record(files.open(name))
            except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
                raise CorruptCheckpointError(f"it is no whole archive ({error})", path=files.path) from error
            if damaged is not None:
                raise CorruptCheckpointError(
                    f"its record {shown(damaged)} is damaged",
                    path=files.path,
                    hint="Nothing was written. If it was saved without checksums (torch.serialization."
                    "set_crc32_options), load it with torch.load and save it again.",
                )


def _damaged_record(file: VerifiedFile) -> str | None:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        is_plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not is_plain or sum(record.file_size for record in records) > file.size_bytes:
            return None
        return archive.testzip()
