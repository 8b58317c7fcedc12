"""The command line, ``ckpt``."""


def main() -> None:
    """Entry point of the console script."""
    from ckpt_lib.cli.streams import open_streams  # first: a file that is opened must not become a standard stream

    open_streams()
    from ckpt_lib.cli.app import app  # here, so that importing a part of the command line does not load all of it

    app(prog_name="ckpt")
