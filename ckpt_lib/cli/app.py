"""``app``: the commands of ``ckpt``, in the order in which its help lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import BAD_INPUT, EXIT_CODES, reported
from ckpt_lib.cli.naming import with_experiment

_SHOW, _PROTECT, _EDIT, _SERVE, _DELETE = "Show", "Protect", "Edit and move", "Serve", "Delete"
_COMMANDS = {
    "list": ("show.list_checkpoints", _SHOW),
    "show": ("show.show", _SHOW),
    "inspect": ("inspect.inspect", _SHOW),
    "compare": ("compare.compare", _SHOW),
    "summary": ("compare.summary", _SHOW),
    "experiments": ("experiments.experiments", _SHOW),
    "find": ("experiments.find", _SHOW),
    "advise": ("advise.advise", _SHOW),
    "watch": ("watch.watch", _SHOW),
    "runs": ("runs.runs", _SHOW),
    "why": ("why.why", _SHOW),
    "init": ("init.init", _PROTECT),
    "reindex": ("experiments.reindex", _PROTECT),
    "validate": ("validate.validate", _PROTECT),
    "scrub": ("validate.scrub", _PROTECT),
    "repair": ("validate.repair", _PROTECT),
    "doctor": ("doctor.doctor", _PROTECT),
    "quarantine": ("doctor.quarantine", _PROTECT),
    "backup": ("backup.backup", _PROTECT),
    "restore": ("backup.restore", _PROTECT),
    "reconcile": ("reconcile.reconcile", _PROTECT),
    "pin": ("edit.pin", _PROTECT),
    "monitor": ("edit.monitor", _EDIT),
    "tag": ("edit.tag", _EDIT),
    "metrics": ("metrics.metrics", _EDIT),
    "export": ("backup.export", _EDIT),
    "convert": ("convert.convert", _EDIT),
    "import": ("imports.import_checkpoint", _EDIT),
    "ui": ("serve.ui", _SERVE),
    "serve": ("serve.serve", _SERVE),
    "token": ("serve.token", _SERVE),
    "mcp": ("mcp.mcp", _SERVE),
    "cleanup": ("cleanup.cleanup", _DELETE),
    "delete": ("cleanup.delete", _DELETE),
    "thin": ("thin.thin", _DELETE),
    "undelete": ("trash.undelete", _DELETE),
    "trash": ("trash.trash", _DELETE),
}
"""Where each command is, and below which heading the help lists it."""
_EXAMPLES = ("ckpt list --where 'val_loss<0.3'", "ckpt validate --all", "ckpt why latest")
_EPILOG = "Examples:\n\n" + "\n".join(f"- {line}" for line in _EXAMPLES)
_EPILOG += "\n\nExit codes:\n\n" + "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())


class _Loaded(Mapping[str, TyperCommand]):
    """The commands, each of which is imported and built when it is asked for: the others would take its time."""

    def __getitem__(self, name: str) -> TyperCommand:
        return _command(name, *_COMMANDS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Commands(TyperGroup):
    """Reports all errors in the same way, including those of parsing the command line."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(MutableMapping[str, Any], _Loaded())

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
            named = ctx.params["experiment"] if "experiment" in typed else None
            given = with_experiment(ctx.params, named, may_be_several=ctx.command.name == "compare")
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


@cache
def _command(name: str, place: str, panel: str) -> TyperCommand:
    module_name, _, function_name = place.partition(".")
    function = getattr(import_module(f"ckpt_lib.cli.{module_name}"), function_name)
    # Typer keeps the line breaks of a docstring, and a narrow terminal would wrap the lines a second time.
    paragraphs = cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, cls=_Command, help=text, rich_help_panel=panel)(function)
    return cast(TyperCommand, get_command(alone))
