"""What to run, and in which environment, checked before anything is started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_lib.config import CheckpointConfig, located
from ckpt_lib.core.wording import briefly
from ckpt_lib.errors import ConfigError
from ckpt_lib.launch.locking import VARIABLE

EXPERIMENT, LAUNCH_ID, ATTEMPT = "CKPT_EXPERIMENT", "CKPT_LAUNCH_ID", "CKPT_LAUNCH_ATTEMPT"
_OPERATOR = re.compile(r"[|&;<>()]+")
_NAME = re.compile(r"[^=\0]+")


def words_of(command: str | Sequence[str]) -> list[str]:
    """Return the program and its arguments. A text is split as a shell splits it, but no shell runs it.

    Raises :class:`~ckpt_lib.errors.ConfigError` for an empty command, and for a text that only a shell understands.
    """
    words = _split(command) if isinstance(command, str) else list(command or ())
    if not words or not all(isinstance(word, str) for word in words) or not words[0]:
        raise ConfigError("the command is empty or not text", expected="a program and arguments", got=briefly(command))
    if any("\0" in word for word in words):
        raise ConfigError("the command holds a NUL character", got=briefly(command))
    return words


def _split(command: str) -> list[str]:
    try:
        # Quotes are kept, so that quoted operators are told from those of a shell.
        lexer = shlex.shlex(command, posix=False, punctuation_chars=True)
        lexer.commenters = ""
        operators = [word for word in lexer if _OPERATOR.fullmatch(word)]
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"the command cannot be split into words: {error}", got=briefly(command)) from error
    if operators:
        raise ConfigError(
            f"the command uses {operators[0]!r} of a shell, but no shell runs it",
            got=briefly(command),
            hint=f"Quote it if it is an argument; or run a shell: {shlex.join(['sh', '-c', '...'])}.",
        )
    return words


def child_environment(
    config: CheckpointConfig, experiment_name: str, launch_id: str, extra: Mapping[str, str] | None
) -> dict[str, str]:
    """Return this process's environment, with the options that were set, the experiment and the id of the launch.

    Options that were not set are taken out, so that the training sees the configuration of the launch alone. Raises
    :class:`~ckpt_lib.errors.ConfigError` for ``extra`` variables that name an option, or what the launch sets.
    """
    options = {name: f"CKPT_{name.upper()}" for name in CheckpointConfig.model_fields}
    own = {*options.values(), EXPERIMENT, LAUNCH_ID, ATTEMPT, VARIABLE}
    for name, value in (extra or {}).items():
        if name in own:
            raise ConfigError(f"{name} is set by the launch", hint="Set it by the parameters of the launch.")
        if not _NAME.fullmatch(name) or "\0" in value:
            raise ConfigError("a variable of the environment cannot have that name or value", got=briefly(name))
    environment = {name: value for name, value in os.environ.items() if name not in own}
    given = located(config).model_dump(mode="json", exclude_unset=True, exclude_none=True)
    environment |= {options[name]: _as_text(value) for name, value in given.items()}
    environment |= {EXPERIMENT: experiment_name, LAUNCH_ID: launch_id}
    environment.setdefault("PYTHONUNBUFFERED", "1")  # else Python keeps several kilobytes of output to itself
    return {**environment, **(extra or {})}


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def directory_of(directory: str | None) -> str:
    """Return the working directory as an absolute path. Raises ``ConfigError`` if it is none."""
    path = Path(directory or os.curdir).absolute()
    if not path.is_dir():
        raise ConfigError("the working directory does not exist", path=str(path), expected="a folder")
    return str(path)


def with_program(words: Sequence[str], environment: Mapping[str, str], directory: str) -> list[str]:
    """Return the words with the path of the program, found as a shell in ``directory`` would find it.

    Programs beside this Python interpreter are found as well, so ``torchrun`` is that of the same virtual environment
    even if that is not activated. Raises :class:`~ckpt_lib.errors.ConfigError` if there is none.
    """
    program, *arguments = words
    if os.sep in program:
        found = shutil.which(os.path.join(directory, program))
    else:
        beside = str(Path(sys.executable).parent)
        found = shutil.which(program, path=os.pathsep.join([environment.get("PATH", os.defpath), beside]))
    if found is None:
        raise ConfigError(
            "the command's program was not found",
            expected="an executable file, or a name in PATH",
            got=briefly(program),
            hint=f"The working directory is {directory}.",
        )
    return [str(Path(directory, found)), *arguments]
