"""The grammars of all names that reach a file system or a person: ids, experiments, tags, descriptions.

The grammars are narrow on purpose. An experiment name becomes a folder on Linux, macOS, Windows and in object stores,
so it may only contain characters that all of them accept unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Self

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import InvalidNameError

MAX_EXPERIMENT_NAME_LENGTH = 100
MAX_TAG_LENGTH = 100
MAX_TAGS = 1_000
MAX_DESCRIPTION_LENGTH = 10_000

_ID = re.compile(
    r"checkpoint_epoch_(?P<epoch>\d{4,18})_step_(?P<step>\d{6,18})"
    r"_(?P<timestamp>\d{8}_\d{6})(?:_(?P<suffix>[1-9]\d{0,8}))?"
)
_TIMESTAMP = "%Y%m%d_%H%M%S"
EXPERIMENT_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9 ._=,+-]*[A-Za-z0-9_=,+-])?"
_EXPERIMENT = re.compile(EXPERIMENT_PATTERN)
_RESERVED_TAGS = {"best", "latest"}
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
# Control, format (such as bidirectional overrides), surrogate, private and unassigned characters, and line separators:
# they are invisible, or can make a text look like another one.
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@dataclass(frozen=True)
class CheckpointId:
    """The parts of an id such as ``checkpoint_epoch_0001_step_000100_20231201_143022``.

    ``timestamp`` is UTC, in whole seconds. ``suffix`` distinguishes saves of the same second: the first has none (0),
    the next has ``_2``.
    """

    epoch: int
    step: int
    timestamp: datetime
    suffix: int = 0

    def __str__(self) -> str:
        moment = self.timestamp.astimezone(UTC)
        stamp = f"{moment.year:04d}{moment:%m%d_%H%M%S}"  # strftime does not pad years everywhere
        text = f"checkpoint_epoch_{self.epoch:04d}_step_{self.step:06d}_{stamp}"
        return f"{text}_{self.suffix}" if self.suffix else text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an id back, or raise :class:`InvalidNameError`."""
        match = _ID.fullmatch(text) if isinstance(text, str) and text.isascii() else None
        try:
            if match is None:
                raise ValueError("it does not match the pattern")
            stamp = datetime.strptime(match["timestamp"], _TIMESTAMP).replace(tzinfo=UTC)
            found = cls(int(match["epoch"]), int(match["step"]), stamp, int(match["suffix"] or 0))
            if str(found) != text:
                raise ValueError("it is another spelling of an id")
        except ValueError as error:
            raise InvalidNameError(
                f"{shown(text)} is not a checkpoint id",
                expected="checkpoint_epoch_0001_step_000100_20231201_143022",
                hint="`ckpt list` shows the ids of an experiment, `ckpt trash` those of deleted checkpoints.",
            ) from error
        return found


def is_checkpoint_id(text: str) -> bool:
    """Tell whether ``text`` is a checkpoint id. Files whose name does not begin with one belong to someone else."""
    return isinstance(text, str) and _is_id(text)


def id_or_placeholder(path: str) -> str:
    """Return the checkpoint id in the name of a payload or manifest, or ``ID``, for a command in a hint."""
    name = path.rpartition("/")[2].partition(".")[0]
    return name if is_checkpoint_id(name) else "ID"


@lru_cache(maxsize=2**16)  # each listing of a folder asks about every name in it
def _is_id(text: str) -> bool:
    try:
        CheckpointId.parse(text)
    except InvalidNameError:
        return False
    return True


def check_experiment_name(name: str) -> str:
    """Return ``name`` if every supported system accepts it as a folder, else raise :class:`InvalidNameError`."""
    if (
        not isinstance(name, str)
        or len(name) > MAX_EXPERIMENT_NAME_LENGTH
        or not _EXPERIMENT.fullmatch(name)
        or is_device_name(name)
    ):
        raise InvalidNameError(
            f"{shown(name)} cannot be an experiment name",
            expected=f"1 to {MAX_EXPERIMENT_NAME_LENGTH} of the characters A-Z a-z 0-9 . _ - = , + and blanks that "
            "start with a letter or digit, do not end with a dot or a blank and are no Windows device name",
            hint="Choose another experiment_name.",
        )
    return name


def is_device_name(name: str) -> bool:
    """Tell whether Windows takes a name, without what follows its first dot, for a device."""
    return name.partition(".")[0].lower() in _WINDOWS_DEVICES


def check_tag(tag: str) -> str:
    """Return ``tag`` if it is one line of visible text, else raise :class:`InvalidNameError`."""
    # Normalize first: the normalized tag may be longer, and it has to pass this check when it is read back.
    normal = unicodedata.normalize("NFC", tag) if isinstance(tag, str) else ""
    if not normal or normal != normal.strip() or len(normal) > MAX_TAG_LENGTH or _has_hidden(normal):
        raise InvalidNameError(
            f"{shown(tag)} cannot be a tag",
            expected=f"1 to {MAX_TAG_LENGTH} visible characters on one line, without blanks at either end",
        )
    if normal in _RESERVED_TAGS or is_checkpoint_id(normal):
        raise InvalidNameError(
            f"{shown(tag)} cannot be a tag: it stands for a checkpoint already", hint="Choose another word."
        )
    if normal.startswith("@") or "~" in normal or "/" in normal:
        raise InvalidNameError(
            f"{shown(tag)} cannot be a tag", expected="a text that does not begin with @ and holds neither ~ nor /"
        )
    return normal


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Check each tag and drop repeated ones, keeping the order. Raises :class:`InvalidNameError`."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidNameError("tags must be a list", expected="['a tag']", got=shown(tags))
    given = list(islice(tags, MAX_TAGS + 1))
    if len(given) > MAX_TAGS:
        raise InvalidNameError("there are too many tags", expected=f"at most {MAX_TAGS}")
    return tuple(dict.fromkeys(map(check_tag, given)))


def check_run_id(run_id: str | None) -> str | None:
    """Return ``run_id`` if it is ``None`` or can be stored, else raise :class:`InvalidNameError`."""
    if run_id is not None and not (isinstance(run_id, str) and 0 < len(run_id) <= 100 and run_id.isprintable()):
        raise InvalidNameError("run_id cannot be stored", expected="1 to 100 visible characters", got=shown(run_id))
    return run_id


def check_description(text: str) -> str:
    """Return ``text`` if it can be stored and printed, else raise :class:`InvalidNameError`."""
    if (
        not isinstance(text, str)
        or len(text) > MAX_DESCRIPTION_LENGTH
        or _has_hidden(text.replace("\n", "").replace("\t", ""))
    ):
        raise InvalidNameError(
            "the description cannot be stored",
            expected=f"at most {MAX_DESCRIPTION_LENGTH} visible characters, tabs and line breaks",
            got=shown(text),
        )
    return text


def _has_hidden(text: str) -> bool:
    return any(unicodedata.category(character) in _HIDDEN_CATEGORIES for character in text)
