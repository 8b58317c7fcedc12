"""``ckpt convert``: from the format of one program to that of another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.output import note, print_facts, print_json
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import refuse_memory
from ckpt_lib.core.wording import size_text


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint of any program: a file, folder or URL.")
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="The file, or the folder for the result if it ends with a slash.")
    ],
    *,
    target_format: options.TargetFormat = None,
    dtype: options.Dtype = None,
    only: options.Only = None,
    shard_size: options.ShardSize = None,
    as_json: options.AsJson = False,
) -> None:
    """Convert a checkpoint of any program, without a store.

    The suffix of DEST names the format: .pt, .pth and .bin a file of torch.save, .safetensors, .ckpt one of Lightning.
    --format says it for any other name. Tensors are converted one by one, and no code that the checkpoint holds is run.
    The result gets its name when it is whole and durable. Another file that has the name is left as it is.

    A checkpoint of this library is verified by its manifest if that lies beside it.

    Example: ckpt convert model.pt model.safetensors
    """
    refuse_memory(source)
    refuse_memory(destination)
    from ckpt_lib import convert_checkpoint

    wanted: dict[str, Any] = {"format": target_format, "dtype": dtype, "only": only, "shard_size": shard_size}
    given = {name: value for name, value in wanted.items() if value is not None}
    with byte_progress("Converting", None) as progress:
        result = convert_checkpoint(source, destination, progress=progress, **given)
    if as_json:
        print_json({**vars(result), "files": list(result.files), "left_out": list(result.left_out)})
        return
    print_facts({"converted": source, "to": result.path, "format": result.format, "size": size_text(result.size_bytes)})
    for sentence in result.left_out:
        note(sentence, warning=True)
