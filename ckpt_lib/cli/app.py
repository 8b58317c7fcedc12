"""``app``: the commands of ``ckpt``, in the order in which its help lists them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ckpt_lib.cli import (
    analysing,
    checking,
    copying,
    doctoring,
    editing,
    finding,
    initialising,
    reconciling,
    retiring,
    trash,
)
from ckpt_lib.cli.errors import BAD_INPUT, EXIT_CODES, reported

_EPILOG = "Exit codes:\n\n" + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())


class _Commands(TyperGroup):
    """Reports every error in our one way, those of parsing the command line included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Asked of the words themselves: the options have not been parsed yet, and that may be what fails.
        ctx.obj = "--json" in args
        with reported(as_json=ctx.obj):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with reported(as_json=ctx.obj):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ckpt_lib import __version__

        typer.echo(f"ckpt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ckpt(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find, check, compare, copy and retire the checkpoints of training runs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(BAD_INPUT)


app.command("list", rich_help_panel="Look")(finding.list_checkpoints)
app.command("show", rich_help_panel="Look")(finding.show)
app.command("compare", rich_help_panel="Look")(analysing.compare)
app.command("summary", rich_help_panel="Look")(analysing.summary)
app.command("experiments", rich_help_panel="Look")(finding.experiments)
app.command("init", rich_help_panel="Keep safe")(initialising.init)
app.command("validate", rich_help_panel="Keep safe")(checking.validate)
app.command("scrub", rich_help_panel="Keep safe")(checking.scrub)
app.command("repair", rich_help_panel="Keep safe")(checking.repair)
app.command("doctor", rich_help_panel="Keep safe")(doctoring.doctor)
app.command("quarantine", rich_help_panel="Keep safe")(doctoring.quarantine)
app.command("backup", rich_help_panel="Keep safe")(copying.backup)
app.command("restore", rich_help_panel="Keep safe")(copying.restore)
app.command("reconcile", rich_help_panel="Keep safe")(reconciling.reconcile)
app.command("pin", rich_help_panel="Keep safe")(editing.pin)
app.command("monitor", rich_help_panel="Label and move")(editing.monitor)
app.command("tag", rich_help_panel="Label and move")(editing.tag)
app.command("export", rich_help_panel="Label and move")(copying.export)
app.command("import", rich_help_panel="Label and move")(copying.import_checkpoint)
app.command("cleanup", rich_help_panel="Retire")(retiring.cleanup)
app.command("delete", rich_help_panel="Retire")(retiring.delete)
app.command("undelete", rich_help_panel="Retire")(trash.undelete)
app.command("trash", rich_help_panel="Retire")(trash.trash)
