"""Weights as files of safetensors: one, or several with the index that Hugging Face's libraries read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from ckpt_lib.converting.files import NewFile, text_file
from ckpt_lib.converting.weights import Weights
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.safetensors.dtypes import ORDER
from ckpt_lib.formats.safetensors.header import MAX_HEADER_BYTES, header_bytes
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, file_name
from ckpt_lib.formats.safetensors.writing import index_bytes
from ckpt_lib.formats.tensor_bytes import TensorStream
from ckpt_lib.stream import HashingWriter

_ENTRY_BYTES, _DIMENSION_BYTES = 120, 20  # of a header: what a tensor takes at most beside its name


def safetensors_files(weights: Weights, stem: str, max_shard_bytes: int) -> list[NewFile]:
    """Return the files, the index last: without that, nobody takes the others for a model.

    Names of tensors that share memory are noted as ``safetensors.torch.save_model`` notes them. Raises
    :class:`~ckpt_lib.errors.UnsupportedStateError` for names that are too long.
    """
    shards = list(_shards(weights.tensors, max_shard_bytes))
    names = [file_name(stem, number, len(shards)) for number in range(1, len(shards) + 1)]
    files = [_file(name, shard, weights.tied) for name, shard in zip(names, shards, strict=True)]
    if len(shards) > 1:
        sizes = [{name: tensor.size_bytes for name, tensor in shard.items()} for shard in shards]
        files.append(text_file(f"{stem}{INDEX_SUFFIX}", index_bytes(dict(zip(names, sizes, strict=True)))))
    return files


def _shards(tensors: Mapping[str, TensorStream], max_bytes: int) -> Iterator[dict[str, TensorStream]]:
    """Yield the tensors of each file, in the order of the model. A larger tensor has a file of its own."""
    shard: dict[str, TensorStream] = {}
    size_bytes = header_size_bytes = 0
    for name, tensor in tensors.items():
        entry_bytes = len(json.dumps(name)) + _ENTRY_BYTES + _DIMENSION_BYTES * len(tensor.shape)
        size_bytes += tensor.size_bytes
        header_size_bytes += entry_bytes
        if shard and (size_bytes > max_bytes or header_size_bytes > MAX_HEADER_BYTES // 2):
            yield shard
            shard, size_bytes, header_size_bytes = {}, tensor.size_bytes, entry_bytes
        shard[name] = tensor
    yield shard


def _file(name: str, tensors: Mapping[str, TensorStream], tied: Mapping[str, str]) -> NewFile:
    ordered = sorted(tensors.items(), key=lambda item: (ORDER[item[1].dtype], item[0].encode(errors="replace")))
    here = {other: kept for other, kept in tied.items() if kept in tensors and other != "format"}
    entries = [(key, tensor.dtype, tensor.shape, tensor.size_bytes) for key, tensor in ordered]
    try:
        header = header_bytes(entries, {"format": "pt", **here})
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
