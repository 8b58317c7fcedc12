"""What the kinds have in common whose folders are split among processes, with a folder for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.json_files import text_of
from ckpt_lib.foreign.sources import FoundFiles


def folder_of_latest(files: FoundFiles, pointer: str, title_of: Callable[[str], str]) -> FoundFiles:
    """Return the folder of the step that was saved last, from what a file says of it.

    Raises :class:`CorruptCheckpointError` if that folder is not there.
    """
    said = text_of(files, pointer)
    title = title_of(said)
    if not any(name.startswith(f"{title}/") for name in files.names):
        raise CorruptCheckpointError(
            f"{pointer} names a step whose folder is not there: {shown(said)}",
            path=files.path,
            hint="Copy its folder, or name the folder of another step.",
        )
    return files.below(title)


def ranks_missing(files: FoundFiles, missing: Sequence[str], ranks: str = "some ranks") -> CorruptCheckpointError:
    """Return the error for a checkpoint without the files of some ranks."""
    return CorruptCheckpointError(
        f"the checkpoint lacks the files of {ranks}: {listed(missing)}",
        path=files.path,
        hint="The save did not end, or not all files were copied.",
    )
