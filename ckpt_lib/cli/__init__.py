"""The command line tool ``ckpt``."""


def main() -> None:
    """Entry point of the console script."""
    from ckpt_lib.cli.streams import open_streams  # first, so that no opened file becomes a standard stream

    open_streams()
    from ckpt_lib.cli.app import app  # here, so that importing one command does not import all

    app(prog_name="ckpt")
