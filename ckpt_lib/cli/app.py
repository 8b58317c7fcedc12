"""``app``: the commands of ``ckpt``, in the order in which its help lists them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ckpt_lib.cli import (
    advise,
    backup,
    cleanup,
    compare,
    convert,
    doctor,
    edit,
    experiments,
    imports,
    init,
    inspect,
    metrics,
    options,
    reconcile,
    show,
    thin,
    trash,
    validate,
)
from ckpt_lib.cli.errors import BAD_INPUT, EXIT_CODES, reported
from ckpt_lib.cli.naming import with_experiment

_EPILOG = "Exit codes:\n\n" + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())


class _Commands(TyperGroup):
    """Reports all errors in the same way, including those of parsing the command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # The options are not parsed yet, and parsing may fail, so look at the words themselves.
        ctx.obj = "--json" in args
        with reported(as_json=ctx.obj):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with reported(as_json=ctx.obj):
            return super().invoke(ctx)


class _Command(TyperCommand):
    """Reports errors while the typed options are known, so that commands in messages can repeat them."""

    def invoke(self, ctx: Any) -> Any:
        typed = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
        with reported(as_json=ctx.obj):
            given = with_experiment(ctx.params, ctx.params["experiment"] if "experiment" in typed else None)
        if given != ctx.params:  # the experiment was typed, in a name
            ctx.params, typed = given, typed | {"experiment"}
        with options.typed({name: ctx.params[name] for name in typed}), reported(as_json=ctx.obj):
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
    """Find, check, compare, back up and clean up the checkpoints of training runs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(BAD_INPUT)


def _add(name: str, command: Callable[..., None], panel: str) -> None:
    # Typer keeps the line breaks of a docstring, and a narrow terminal would wrap the lines a second time.
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, cls=_Command, help=text, rich_help_panel=panel)(command)


_add("list", show.list_checkpoints, "Show")
_add("show", show.show, "Show")
_add("inspect", inspect.inspect, "Show")
_add("compare", compare.compare, "Show")
_add("summary", compare.summary, "Show")
_add("experiments", experiments.experiments, "Show")
_add("find", experiments.find, "Show")
_add("advise", advise.advise, "Show")
_add("init", init.init, "Protect")
_add("reindex", experiments.reindex, "Protect")
_add("validate", validate.validate, "Protect")
_add("scrub", validate.scrub, "Protect")
_add("repair", validate.repair, "Protect")
_add("doctor", doctor.doctor, "Protect")
_add("quarantine", doctor.quarantine, "Protect")
_add("backup", backup.backup, "Protect")
_add("restore", backup.restore, "Protect")
_add("reconcile", reconcile.reconcile, "Protect")
_add("pin", edit.pin, "Protect")
_add("monitor", edit.monitor, "Edit and move")
_add("tag", edit.tag, "Edit and move")
_add("metrics", metrics.metrics, "Edit and move")
_add("export", backup.export, "Edit and move")
_add("convert", convert.convert, "Edit and move")
_add("import", imports.import_checkpoint, "Edit and move")
_add("cleanup", cleanup.cleanup, "Delete")
_add("delete", cleanup.delete, "Delete")
_add("thin", thin.thin, "Delete")
_add("undelete", trash.undelete, "Delete")
_add("trash", trash.trash, "Delete")
