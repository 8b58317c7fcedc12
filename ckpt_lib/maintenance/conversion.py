"""Checkpoints in the formats of other programs: from a store, and from any file or folder without one."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from ckpt_lib.compression import PlainFile
from ckpt_lib.converting.options import ConversionOptions, conversion_options
from ckpt_lib.converting.targets import Conversion, Target, target_of, write_as
from ckpt_lib.converting.tensors import stored_tensors
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.errors import NotACheckpointError, NotAStoreError, UnsupportedFormatError
from ckpt_lib.experiment.at_path import checkpoint_at, file_at
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_payload import StoredPayload, errors_named, format_of
from ckpt_lib.foreign import ForeignCheckpoint, FoundFiles, found_files
from ckpt_lib.foreign.checksums import check_checksums
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.formats import Payload, PayloadSource, format_named, is_compressed, plain_source
from ckpt_lib.formats.registry import FILE_SUFFIXES, SEPARATOR, codec_name_of, format_of_bare_files
from ckpt_lib.maintenance.exports import refuse_experiment
from ckpt_lib.maintenance.validate import check_parts
from ckpt_lib.store import location
from ckpt_lib.store.local.os_errors import errors_of_writing
from ckpt_lib.store.registry import scheme_of, url_text
from ckpt_lib.stream import VerifiedFile

if TYPE_CHECKING:
    from ckpt_lib.formats.compressed import PlainSource

logger = logging.getLogger(__name__)

_NO_NAME = "converted"  # of an experiment: an export answers to any


def convert(source: str | os.PathLike[str], destination: str | os.PathLike[str], **options: Any) -> Conversion:
    """Do what :func:`ckpt_lib.convert_checkpoint` promises."""
    place = url_text(destination)
    return _convert(url_text(source), place, conversion_options(place, **options))


def export(experiment: Experiment, manifest: Manifest, destination: str | os.PathLike[str], **options: Any) -> str:
    """Do as :func:`export_as`, with the options of :func:`ckpt_lib.convert_checkpoint`; return where the result lies.

    A name that stands for a file of ``torch.save`` without these options stands for one with them, ``.ckpt`` too. What
    is not in the result is logged.
    """
    place = url_text(destination)
    if options.get("format") is None and place.lower().endswith(FILE_SUFFIXES):
        options["format"] = "torch"
    result = export_as(experiment, manifest, destination, conversion_options(place, **options))
    for sentence in result.left_out:
        logger.warning("%s: %s", result.path, sentence)
    return result.path


def export_as(
    experiment: Experiment, manifest: Manifest, destination: str | os.PathLike[str], options: ConversionOptions
) -> Conversion:
    """Write a checkpoint in a format of another program. Every byte that is read is verified before it is used.

    Raises what :func:`ckpt_lib.convert_checkpoint` raises, and :class:`~ckpt_lib.errors.CheckpointNotFoundError` when
    the checkpoint was deleted meanwhile.
    """
    target = target_of(destination, options, manifest.checkpoint_id)
    refuse_experiment(Experiment(target.store, "", experiment.name, single_writer=True))
    with ExitStack() as stack:
        with errors_named(experiment, manifest, manifest.files):
            stored = stack.enter_context(StoredPayload(experiment, manifest.files, verify=True))
            payload = _read(stack, stored, manifest, _folder_near(target), options)
        return write_as(payload, target, options)


def _read(
    stack: ExitStack, stored: StoredPayload, manifest: Manifest, scratch: str, options: ConversionOptions
) -> Payload:
    """Return a verified payload, as views of files."""
    if not options.only_model:
        stored.require_all()
    source: PayloadSource = stored
    stored_format = format_of(manifest)
    if is_compressed(manifest.format):
        plain, stored_format = plain_source(stored_format, stored)
        source = stack.enter_context(_Decompressed(plain, scratch))
    payload = stored_format.read(source, keys=[MODEL_KEY] if options.only_model else None)
    if not options.only_model:
        check_parts(payload, manifest)
    facts = {"epoch": manifest.epoch, "step": manifest.step, "config": manifest.config}
    found: Payload = stored_tensors({**facts, **payload})
    return found


def _convert(source: str, destination: str | os.PathLike[str], options: ConversionOptions) -> Conversion:
    found, nothing_there, path = None, None, _without_link(source)
    try:
        found = checkpoint_at(path)
        if found is None:
            file_at(path)
    except NotAStoreError:  # something else is where a folder should be
        pass
    except NotACheckpointError as error:
        nothing_there = error
    if found is not None:
        origin, checkpoint_id = found
        return export_as(origin, origin.get(checkpoint_id), destination, options)
    try:
        return _convert_foreign(source, destination, options)
    except NotACheckpointError as error:
        raise nothing_there or error from None


def _without_link(source: str) -> str:
    """Return where a link leads to: a store follows none."""
    path = source.removeprefix("file://").rstrip("/")
    return os.path.realpath(path) if scheme_of(source) == "file" and os.path.islink(path) else source


def _convert_foreign(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], options: ConversionOptions
) -> Conversion:
    with found_files(source) as files:
        target = target_of(destination, options, _stem(files.title))
        refuse_experiment(Experiment(target.store, "", _NO_NAME, single_writer=True))
        with _plain(files, _folder_near(target)) as plain:
            unchecked = check_checksums(plain)
            checkpoint = describe_checkpoint(plain)
            result = write_as(_payload_of(checkpoint), target, options)
    return replace(result, left_out=(*unchecked, *checkpoint.left_out, *result.left_out))


def _payload_of(checkpoint: ForeignCheckpoint) -> Payload:
    if checkpoint.payload is None:
        raise UnsupportedFormatError(
            f"{checkpoint.title} cannot be converted: {checkpoint.obstacle}", path=checkpoint.files.path
        )
    facts = checkpoint.facts
    known = {"epoch": facts.epoch, "step": facts.step, "metrics": dict(facts.metrics), "config": dict(facts.config)}
    return {**known, **{key: value for key, value in checkpoint.payload.items() if value is not None}}


def _stem(title: str) -> str:
    stem, dot, _ = title.partition(".")
    return stem if dot and stem else title.strip(".") or "checkpoint"


# --- compressed ones ---


class _Decompressed:
    """The plain files of a compressed payload, in temporary files: tensors are views of them, and take no memory.

    The files have no names, so nothing is left of them, however the process ends.
    """

    def __init__(self, source: PlainSource, folder: str) -> None:
        self._source = source
        self._folder = folder
        self._opened: dict[str, VerifiedFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> Sequence[str]:
        return self._source.names

    def open(self, name: str = "") -> VerifiedFile:
        if name not in self._opened:
            file = _decompress(self._source.open(name), self._folder)
            self._opened[name] = self._stack.enter_context(VerifiedFile(file, None))
        found = self._opened[name]
        found.seek(0)
        return found


def _decompress(file: PlainFile, folder: str) -> BinaryIO:
    """Return the plain bytes, each verified, as a temporary file."""
    with errors_of_writing(folder):
        target = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - whoever maps it closes it
        try:
            for block in file.blocks():
                target.write(block)
            target.flush()
        except BaseException:
            target.close()
            raise
    target.seek(0)
    return cast(BinaryIO, target)


@contextmanager
def _plain(files: FoundFiles, scratch: str) -> Iterator[FoundFiles]:
    """Yield the files as they are, or the one that a compressed one holds."""
    codec_name = codec_name_of(files.start()) if files.is_one_file else None
    if codec_name is None:
        yield files
        return
    bare = format_of_bare_files().name
    source, _ = plain_source(format_named(f"{bare}{SEPARATOR}{codec_name}"), files)
    file = source.open()
    sizes = {"": file.size_bytes}
    with FoundFiles(files.path, sizes, lambda _: _decompress(file, scratch), title=files.title) as plain:
        yield plain


def _folder_near(target: Target) -> str:
    """Return a folder of this machine for temporary files: the target's, or the one that it will lie in."""
    place = location(target.store)
    if scheme_of(target.store.url) != "file":
        return tempfile.gettempdir()
    return str(next(folder for folder in (Path(place).absolute(), *Path(place).absolute().parents) if folder.is_dir()))
