"""Weights as files of safetensors: one, or several with the index that Hugging Face's libraries read."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_lib.converting.files import NewFile, text_file
from ckpt_lib.converting.weights import Weights
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.safetensors.header import FORMAT_KEY, MAX_HEADER_BYTES, header_bytes
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, file_name
from ckpt_lib.formats.safetensors.writing import index_bytes, shards
from ckpt_lib.formats.structure.dtypes import ORDER
from ckpt_lib.formats.tensor_bytes import TensorStream
from ckpt_lib.stream import HashingWriter


def safetensors_files(weights: Weights, stem: str, max_shard_bytes: int) -> list[NewFile]:
    """Return the files, the index last: without that, nobody takes the others for a model.

    Names of tensors that share memory are noted as ``safetensors.torch.save_model`` notes them. Raises
    :class:`~ckpt_lib.errors.UnsupportedStateError` for names that are too long.
    """
    found = [dict(shard) for shard in shards(weights.tensors.items(), _measured, max_shard_bytes)]
    names = [file_name(stem, number, len(found)) for number in range(1, len(found) + 1)]
    files = [_file(name, shard, weights.tied) for name, shard in zip(names, found, strict=True)]
    if len(found) > 1:
        sizes = [{name: tensor.size_bytes for name, tensor in shard.items()} for shard in found]
        files.append(text_file(f"{stem}{INDEX_SUFFIX}", index_bytes(dict(zip(names, sizes, strict=True)))))
    return files


def _measured(item: tuple[str, TensorStream]) -> tuple[str, int, int]:
    name, tensor = item
    return name, len(tensor.shape), tensor.size_bytes


def _file(name: str, tensors: Mapping[str, TensorStream], tied: Mapping[str, str]) -> NewFile:
    ordered = sorted(tensors.items(), key=lambda item: (ORDER[item[1].dtype], item[0].encode(errors="replace")))
    here = {other: kept for other, kept in tied.items() if kept in tensors}
    entries = [(key, tensor.dtype, tensor.shape, tensor.size_bytes) for key, tensor in ordered]
    try:
        header = header_bytes(entries, {FORMAT_KEY: "pt", **here})
    except UnicodeEncodeError as error:
        raise UnsupportedStateError("a tensor has a name that is no text", got=ascii(error.object)[:100]) from error
    if len(header) > MAX_HEADER_BYTES:
        raise UnsupportedStateError(
            f"the names of the tensors of {name} are too long to be read back",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            got=f"{len(header)} bytes",
        )

    def write(stream: HashingWriter) -> None:
        stream.write(header)
        for _, tensor in ordered:
            for block in tensor.blocks():
                stream.write(block)

    return NewFile(name, len(header) + sum(tensor.size_bytes for tensor in tensors.values()), write)
