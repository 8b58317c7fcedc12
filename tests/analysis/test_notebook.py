"""What notebooks show: escaped, without colours or addresses, bounded; and that a repr is short."""

from __future__ import annotations

import json
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager, describe_experiments
from ckpt_lib.core import html
from ckpt_lib.errors import CheckpointError
from ckpt_lib.maintenance.importing.report import ImportedItem, ImportReport
from ckpt_lib.policies.retention import KeepNewest
from tests.helpers import MakeManager, flip_bit, payload_path, save

MARKUP = "<img src=x onerror=alert(1)>\"'&"
ALLOWED = {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}


class Read(HTMLParser):
    """The text of a page, and its tags with their attributes; refuses what is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self._open = "", [], []  # type: tuple[str, list[tuple[str, Any]], list[str]]
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def shown(make_manager: MakeManager) -> dict[str, Any]:
    """Everything that a notebook can show, of an experiment with damage, whose every text is markup."""
    manager = make_manager(max_checkpoints=20)
    for epoch, loss in enumerate((3.0, 1.0, float("nan")), start=1):
        metrics = {"val_loss": loss, MARKUP[:20]: loss}
        save(manager, epoch, metrics=metrics, tags=[MARKUP.replace("/", "")], config={MARKUP: epoch})
    first = manager.checkpoint_ids()[0]
    manager.edit_checkpoint("latest", description=MARKUP)
    flip_bit(payload_path(manager, first), -1)
    item = ImportedItem(path=MARKUP, title=MARKUP, result="refused", reason=MARKUP)
    return {
        "manager": manager,
        "checkpoint": manager.get_checkpoint("latest"),
        "comparison": manager.compare_checkpoints(["best", "latest"], tensors=True),
        "summary": manager.get_checkpoint_summary(),
        "plan": manager.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True).plan,
        "validation": manager.validate_checkpoint(first),
        "scrub": manager.scrub(),
        "doctor": manager.doctor(deep=True),
        "import": ImportReport(experiment_name="run", items=(item,)),
        "advice": manager.advise(),
        "overview": describe_experiments(manager.config)[0],
        "cleanup": manager.cleanup_checkpoints(policy=KeepNewest(count=1)),
    }


def test_what_is_shown_is_text_without_colours_and_addresses(shown: dict[str, Any]) -> None:
    """Markup in tags, metrics and descriptions is text; nothing is fetched; dark and light pages colour it alike."""
    for name, item in shown.items():
        page = Read(item._repr_html_())
        assert {tag for tag, _ in page.tags} <= ALLOWED, name
        assert all(set(attributes) <= {"style", "scope"} for _, attributes in page.tags), name
        styles = " ".join(attributes.get("style", "") for _, attributes in page.tags)
        assert not re.search(r"color|background|#[0-9a-f]{3}|rgb|url", styles), name
        assert page.text.strip(), name
    for name in ("manager", "checkpoint", "comparison", "summary", "import"):
        assert "<img src=x" in Read(shown[name]._repr_html_()).text, name


def test_what_matters_is_shown(shown: dict[str, Any]) -> None:
    """The best, the damage, what goes and why, with sizes and times in the units of every other table."""
    text = {name: Read(item._repr_html_()).text for name, item in shown.items()}
    best = shown["overview"].best_checkpoint
    assert all(best in text[name] for name in ("manager", "summary", "overview", "comparison"))
    assert "damaged" in text["validation"]
    assert "altered" in text["validation"]
    assert "1 damaged" in text["scrub"]
    assert "1 problem" in text["doctor"]
    assert "goes" in text["plan"]
    assert "no rule keeps it" in text["plan"]
    assert "UTC" in text["checkpoint"]
    assert all("KiB" in text[name] or " B" in text[name] for name in ("manager", "checkpoint", "plan", "advice"))


def test_a_repr_is_one_short_line(shown: dict[str, Any]) -> None:
    """A list of a hundred checkpoints stays readable, and names what sets each apart."""
    for name, item in shown.items():
        if name not in ("comparison", "summary"):
            assert "\n" not in repr(item)
            assert len(repr(item)) < 500, name
    assert "marks=['latest', 'unhealthy']" in repr(shown["checkpoint"]) or "'latest'" in repr(shown["checkpoint"])
    assert "is_valid=False" in repr(shown["validation"])


def test_comparisons_and_summaries_stay_dictionaries(shown: dict[str, Any]) -> None:
    """They are equal to plain ones, become JSON and pickles, and are shown after keys were taken out."""
    for name in ("comparison", "summary"):
        item = shown[name]
        assert isinstance(item, dict)
        assert item == dict(item)
        json.dumps(item)
        assert pickle.loads(pickle.dumps(item)).keys() == item.keys()
        emptied: Any = type(item)()
        assert Read(emptied._repr_html_()).text


def test_a_long_table_is_cut_and_says_so() -> None:
    """A notebook's file does not grow with the store."""
    rows = [(number, "x" * 10_000) for number in range(5_000)]
    page = html.table(("number", "text"), rows, numeric=("number",))
    assert len(page) < 60_000
    assert "4,950 more: to_dataframe has all of them." in Read(page).text
    assert html.table(("number",), []) == ""


def test_control_characters_are_shown_as_escapes() -> None:
    """A text that turns the direction of writing, or ends a line, cannot pass for another."""
    assert html.text_html("a\u202eb\nc") == "a\\u202eb\\nc"
    assert html.text_html(None) == ""
    assert html.text_html([True, 0.1234567, "<"]) == "yes, 0.123457, &lt;"


def test_a_manager_whose_store_cannot_be_read_says_so(tmp_path: Path) -> None:
    """Showing a manager raises nothing; what is wrong is shown in its place."""
    (tmp_path / "store").write_text("a file")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "store")), "run")
    with pytest.raises(CheckpointError) as failure:
        manager.list_checkpoints()
    assert failure.value.message in Read(manager._repr_html_()).text


def test_an_empty_experiment_is_shown(manager: CheckpointManager) -> None:
    """A manager that has saved nothing yet shows its name and place."""
    assert "0 checkpoints" in Read(manager._repr_html_()).text
