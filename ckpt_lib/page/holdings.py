"""What uploaded files hold: kind, writer, tensors and what is suspicious, in the words of ``ckpt inspect``.

The structure alone is read. No code runs, and no tensor is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ckpt_lib.core.wording import briefly, count_of, size_text, visible
from ckpt_lib.errors import CheckpointError, IntegrityError
from ckpt_lib.foreign import found_files
from ckpt_lib.foreign.dangerous_names import runs_commands
from ckpt_lib.inspecting.facts import facts_of
from ckpt_lib.inspecting.inspection import inspect_checkpoint
from ckpt_lib.inspecting.results import Inspection
from ckpt_lib.maintenance.importing.tree_items import TreeItem, described_item, in_order, items_in
from ckpt_lib.page.detail import tensors_html
from ckpt_lib.page.markup import NOTHING, badge, code, facts, joined, number, section, warning
from ckpt_lib.web.uploads import Uploads

ALL = "all files together"
"""The name of several files that are one checkpoint, and were in no folder."""
_MOST_SHOWN = 50
_MOST_SENTENCES = 20


@dataclass(frozen=True)
class _Held:
    """One thing among the files."""

    name: str
    title: str
    size_bytes: int
    inspection: Inspection | None = None
    problem: str = ""
    """Why it cannot be imported."""
    mark: str = ""
    """The word that says so in a list."""


def look_at(uploads: Uploads, upload_ids: Sequence[str]) -> tuple[Markup, bool]:
    """Return what files hold, and whether they are one checkpoint, which can be converted.

    Raises :class:`~ckpt_lib.errors.UploadNotFoundError` if an upload has gone, and
    :class:`~ckpt_lib.errors.NotACheckpointError` for too many files.
    """
    with uploads.laid_out(upload_ids) as path:
        if path.is_file():
            held = [_inspected(path.name, str(path), uploads)]
            is_one = not held[0].problem
        else:
            items = _items(path)
            held = [_looked_at(item, uploads) for item in items[:_MOST_SHOWN]]
            is_one = [item.path for item in items] == [""] and not held[0].problem
        return _html(held, len(upload_ids), more=0 if path.is_file() else len(items) - len(held)), is_one


def _items(folder: Path) -> list[TreeItem]:
    """Return what an import of the folder would find, in its order; at the end what is no checkpoint."""
    with found_files(folder) as files:
        found = [described_item(item) for item in items_in(files, str(folder))]
    others = [item for item in found if not item.is_checkpoint]
    return [*in_order([item for item in found if item.is_checkpoint]), *others]


def _looked_at(item: TreeItem, uploads: Uploads) -> _Held:
    name, failure = item.path or uploads.as_named(item.source), item.failure
    name = ALL if name == "upload" else name
    if failure is None and not item.is_part:
        return _inspected(name, item.source, uploads)
    if failure is None:  # some files of a folder, which no path names
        return _Held(name, item.title, item.size_bytes)
    if isinstance(failure, CheckpointError):
        failure.path = None  # the name says it
    mark = "damaged" if isinstance(failure, IntegrityError) else "refused" if item.is_checkpoint else "no checkpoint"
    return _Held(name, item.title, item.size_bytes, problem=uploads.as_named(str(failure)), mark=mark)


def _inspected(name: str, path: str, uploads: Uploads) -> _Held:
    """Inspect a file or folder. What is said of it names no folder of the server."""
    said = inspect_checkpoint(path)
    found = said.model_copy(
        update={
            "problem": None if said.problem is None else uploads.as_named(said.problem),
            "findings": tuple(map(uploads.as_named, said.findings)),
            "left_out": tuple(map(uploads.as_named, said.left_out)),
        }
    )
    mark = "suspicious" if found.findings else ""
    if found.problem:
        mark = "damaged" if "repair" in found.needs else "refused"
    return _Held(name, found.title, found.size_bytes, found, found.problem or "", mark)


def _html(held: Sequence[_Held], count: int, *, more: int) -> Markup:
    if not held:
        return warning(f"There is no checkpoint in {count_of(count, 'file')}.")
    if len(held) == 1:
        head = Markup('<h2 class="ck-id">{}</h2>').format(visible(held[0].name))
        return Markup('<header class="ck-head">{}</header>{}').format(head, _body(held[0]))
    parts = [
        Markup('<details class="ck-held"><summary>{}</summary>{}</details>').format(_summary(item), _body(item))
        for item in held
    ]
    rest = warning(f"And {more:,} more, which an import looks at as well.") if more else NOTHING
    sound = sum(not item.problem for item in held)
    counted = f"{count_of(count, 'file')}, " + (f"the first {len(held)} shown" if more else f"{sound} can be imported")
    return section(counted, joined(parts) + rest)


def _summary(item: _Held) -> Markup:
    told = f"{item.title}, {size_text(item.size_bytes)}"
    template = Markup('<span class="ck-id">{}</span> <span class="ck-soft">{}</span> {}')
    return template.format(visible(item.name), told, badge(item.mark) if item.mark else NOTHING)


def _body(item: _Held) -> Markup:
    found = item.inspection
    if found is None:
        shown = {"Kind": item.title, "Size": size_text(item.size_bytes)}
        return joined([warning(item.problem) if item.problem else NOTHING, facts(shown)])
    said = {name: text for name, text in facts_of(found).items() if name not in ("path", "problem")}
    return joined(
        [
            warning(found.problem) if found.problem else NOTHING,
            *(warning(sentence) for sentence in found.findings[:_MOST_SENTENCES]),
            facts({name.capitalize(): _lines(text) for name, text in said.items()}),
            _left_out(found),
            _of_code(found, item.name),
            section("Metrics", facts({visible(name): number(value) for name, value in found.metrics.items()}))
            if found.metrics
            else NOTHING,
            _options(found),
            tensors_html(found),
        ]
    )


def _lines(text: str) -> Markup:
    return joined([visible(line) for line in text.split("\n")], Markup("<br>"))


def _left_out(found: Inspection) -> Markup:
    if not found.left_out:
        return NOTHING
    items = [Markup("<li>{}</li>").format(visible(sentence)) for sentence in found.left_out[:_MOST_SENTENCES]]
    return section("An import leaves out", Markup('<ul class="ck-history">{}</ul>').format(joined(items)))


def _of_code(found: Inspection, name: str) -> Markup:
    """Say how objects are loaded whose classes bring code, unless they are an attack."""
    if "trust_pickle" not in found.needs:
        return NOTHING
    told = "The code of its pickle does not run here: what needs it is left out."
    if any(map(runs_commands, found.classes)):
        return warning(told)
    command = f'python -c "import torch; print(torch.load({name!r}, weights_only=False))"'  # names have no quotes
    return warning(f"{told} If you trust whoever wrote the file, this runs it on your machine:") + code(command)


def _options(found: Inspection) -> Markup:
    if not found.config:
        return NOTHING
    shown = {
        visible(str(name)): Markup('<code class="ck-break">{}</code>').format(briefly(value))
        for name, value in list(found.config.items())[:_MOST_SHOWN]
    }
    summary = f"{count_of(len(found.config), 'option')} of its configuration"
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, facts(shown))
