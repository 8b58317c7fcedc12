"""The checksums within files of ``torch.save``: they tell damage where there are no digests to compare with."""

from __future__ import annotations

import zipfile

from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.stream import VerifiedFile

_ZIP_START = b"PK\x03\x04"


def check_checksums(files: FoundFiles) -> list[str]:
    """Compare the CRC-32 of each record of the files that are zip archives, as those of ``torch.save`` are.

    Returns what there is to say of the other files, which hold no checksums. Raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` for a damaged record. Archives that name more bytes than they have,
    or compress them, are not torch's, and nothing is read of these.
    """
    unchecked = []
    for name in files.names:
        if files.sizes_bytes[name] and files.start(name).startswith(_ZIP_START):
            _check_archive(files, name)
        else:
            unchecked.append(name or files.title)
    told = f"No checksums came with {listed(unchecked, 5)}: bytes that were damaged before cannot be told."
    return [told] if unchecked else []


def _check_archive(files: FoundFiles, name: str) -> None:
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
