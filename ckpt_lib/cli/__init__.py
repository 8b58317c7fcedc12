"""The command line, ``ckpt``."""

import io
import sys


def main() -> None:
    """Entry point of the console script."""
    from ckpt_lib.cli.app import app  # here, so that importing a part of the command line does not load all of it

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a tag must not fail a terminal that lacks its letters
    app(prog_name="ckpt")
