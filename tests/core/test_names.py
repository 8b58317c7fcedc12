"""Names: what parses is canonical, what is accepted survives a real folder, and everything hostile is refused."""

from __future__ import annotations

import contextlib
import os
import tempfile
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.names import (
    MAX_DESCRIPTION_LENGTH,
    MAX_EXPERIMENT_NAME_LENGTH,
    MAX_TAG_LENGTH,
    CheckpointId,
    check_description,
    check_experiment_name,
    check_tag,
    check_tags,
    is_checkpoint_id,
)
from ckpt_lib.errors import InvalidNameError

EXAMPLE = "checkpoint_epoch_0001_step_000100_20231201_143022"

ids = st.builds(
    CheckpointId,
    st.integers(0, 10**18 - 1),
    st.integers(0, 10**18 - 1),
    st.integers(-62_000_000_000, 253_000_000_000).map(
        lambda s: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=s)
    ),
    st.integers(0, 999_999_999),
)

HOSTILE_EXPERIMENTS = [
    *("", ".", "..", "../x", "a/b", "a\\b", "/etc", "C:", "C:\\x", "a:b", "~", "a~b", "s3://bucket", "%2e%2e", "$HOME"),
    *(".hidden", "-rf", "_x", "=a", ",a", " a", "a ", "a.", "a..", "a\n", "a\nb", "a\0b", "a\tb"),
    *("con", "CON", "Con.txt", "nul", "PRN.a.b", "aux", "com1", "LPT9.log", "a*b", "a?b", "a|b", 'a"b', "a<b"),
    *("é", "e\u0301", "\u202eabc", "a\u200bb", "\uff41", "\u0661", "a\ud800", "x" * (MAX_EXPERIMENT_NAME_LENGTH + 1)),
    *(None, 1, b"a", ["a"]),
]
"""Other places, what a shell or the end of a name hides, what Windows refuses, look-alikes, and other types."""
ORDINARY_EXPERIMENTS = [
    *("a", "0", "my_experiment", "a.b-c_d", "x" * MAX_EXPERIMENT_NAME_LENGTH, "console"),
    *("lr=0.1,wd=1e-4", "run 7", "a+b", "x,y", "ends-", "a b.c"),
]
HOSTILE_TAGS = [
    *("", " ", " a", "a ", "a\n", "a\nb", "a\rb", "a\tb", "a\0", "a\x1b[31m", "\u00a0a", "a\u3000"),
    *("\u2028", "a\u2029b", "a\u202eb", "a\u200bb", "\ufeffa", "a\u2066b", "\ud800", "\ue000", "a\u00adb"),
    *("best", "latest", EXAMPLE, "@a", "a~1", "a/b", "x" * (MAX_TAG_LENGTH + 1), None, 7, b"tag"),
]
"""Blanks at the ends, hidden characters, what stands for a checkpoint already, and other types."""


@given(ids)
def test_an_id_is_read_back_as_it_was_written(wanted: CheckpointId) -> None:
    """Every combination of epoch, step, second and suffix survives being written and parsed."""
    assert CheckpointId.parse(str(wanted)) == wanted
    assert is_checkpoint_id(str(wanted))


@given(ids, st.integers(-14, 14))
def test_an_id_is_in_utc_whatever_the_clock_says(wanted: CheckpointId, hours: int) -> None:
    """The same instant in another time zone makes the same id."""
    there = wanted.timestamp.astimezone(timezone(timedelta(hours=hours)))
    assert str(CheckpointId(wanted.epoch, wanted.step, there, wanted.suffix)) == str(wanted)


def test_the_documented_id_is_what_is_printed() -> None:
    """The form promised to users, digit by digit, and the suffix of a second save in one second."""
    moment = datetime(2023, 12, 1, 14, 30, 22, tzinfo=UTC)
    assert str(CheckpointId(1, 100, moment)) == EXAMPLE
    assert str(CheckpointId(1, 100, moment, 2)) == f"{EXAMPLE}_2"


@pytest.mark.parametrize(
    "text",
    [
        *("", "latest", "best", f"{EXAMPLE}\n", f" {EXAMPLE}", f"{EXAMPLE}.pt", f"../{EXAMPLE}", EXAMPLE.upper()),
        *(f"{EXAMPLE}{suffix}" for suffix in ("_0", "_02", "_", "_-1", "_2_3", "_1000000000")),
        EXAMPLE.replace("0001", "00001"),
        EXAMPLE.replace("0001", "001"),
        EXAMPLE.replace("000100", "0000100"),
        EXAMPLE.replace("000100", "+00100"),
        EXAMPLE.replace("0001", "-001"),
        EXAMPLE.replace("0001", "\u0660\u0660\u0660\u0661"),
        EXAMPLE.replace("20231201", "20231301"),
        EXAMPLE.replace("20231201", "20230229"),
        EXAMPLE.replace("20231201", "00001201"),
        EXAMPLE.replace("143022", "243022"),
        EXAMPLE.replace("143022", "143060"),
        EXAMPLE.replace("143022", "1430 2"),
        EXAMPLE.replace("0001", "1" * 19),
        EXAMPLE.replace("_step", "_\u017ftep"),
    ],
)
def test_what_is_nearly_an_id_is_none(text: str) -> None:
    """Another spelling of an id is refused: two names for one checkpoint would be two checkpoints."""
    assert not is_checkpoint_id(text)
    with pytest.raises(InvalidNameError) as refused:
        CheckpointId.parse(text)
    assert refused.value.expected == EXAMPLE


@given(ids, st.data())
def test_a_mutated_id_is_refused_or_canonical(wanted: CheckpointId, data: st.DataObject) -> None:
    """Whatever one edit of an id parses as, it is printed as exactly the same text."""
    text = str(wanted)
    at = data.draw(st.integers(0, len(text)))
    piece = data.draw(st.text("0123456789_-. \nce\u0661", max_size=2))
    mutant = text[:at] + piece + text[at + data.draw(st.integers(0, 2)) :]
    if is_checkpoint_id(mutant):
        assert str(CheckpointId.parse(mutant)) == mutant


@given(st.text())
def test_arbitrary_text_is_refused_with_the_right_error(text: str) -> None:
    """Parsing never raises anything but InvalidNameError, and its message has no control characters."""
    assert not is_checkpoint_id(text)
    with pytest.raises(InvalidNameError) as refused:
        CheckpointId.parse(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", HOSTILE_EXPERIMENTS, ids=ascii)
def test_a_hostile_experiment_name_is_refused(name: object) -> None:
    """Traversal, absolute paths, device names, look-alikes and other types never become a folder."""
    with pytest.raises(InvalidNameError) as refused:
        check_experiment_name(name)  # type: ignore[arg-type]
    assert str(refused.value).isprintable()


@given(st.one_of(st.text(max_size=120), st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9 ._=,+-]{0,99}\Z")))
def test_an_accepted_experiment_name_is_a_folder(name: str) -> None:
    """What is accepted can be created below a root, is found there under the same name, and nowhere else."""
    try:
        assert check_experiment_name(name) == name
    except InvalidNameError:
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / name
        folder.mkdir()
        assert os.listdir(root) == [name]
        assert folder.resolve().parent == Path(root).resolve()
        assert name == unicodedata.normalize("NFC", name) == unicodedata.normalize("NFD", name)


@pytest.mark.parametrize("name", ORDINARY_EXPERIMENTS)
def test_ordinary_experiment_names_are_accepted(name: str) -> None:
    """Among them are the names that sweeps make."""
    assert check_experiment_name(name) == name


@pytest.mark.parametrize("tag", HOSTILE_TAGS, ids=ascii)
def test_a_hostile_tag_is_refused(tag: object) -> None:
    """Hidden characters could pass for another tag; one that a keyword or an id hides could never be asked for."""
    with pytest.raises(InvalidNameError) as refused:
        check_tag(tag)  # type: ignore[arg-type]
    assert str(refused.value).isprintable()


@given(st.one_of(st.text(max_size=110), st.text("\u0958\ufb2a\U0001d160\u0344e\u0301", min_size=1, max_size=100)))
def test_an_accepted_tag_is_accepted_again(tag: str) -> None:
    """Checking is idempotent, so that a tag which was stored can be read back; and twins become one."""
    try:
        stored = check_tag(tag)
    except InvalidNameError:
        return
    assert check_tag(stored) == stored
    assert len(stored) <= MAX_TAG_LENGTH
    assert stored == unicodedata.normalize("NFC", tag)
    with contextlib.suppress(InvalidNameError):
        assert check_tag(unicodedata.normalize("NFD", tag)) == stored


def test_tags_keep_their_order_and_lose_repeats() -> None:
    """The first mention counts, also of two spellings of the same characters."""
    assert check_tags(["b", "a", "b", "caf\u00e9", "cafe\u0301"]) == ("b", "a", "caf\u00e9")


def test_a_single_text_is_not_a_list_of_tags() -> None:
    """``tags="best"`` would otherwise become the four tags b, e, s and t."""
    with pytest.raises(InvalidNameError, match="must be a list"):
        check_tags("best")


@pytest.mark.parametrize(
    "text", ["\0", "a\x1b[0m", "a\rb", "\u202e", "\ud800", "x" * (MAX_DESCRIPTION_LENGTH + 1), None, 3]
)
def test_a_hostile_description_is_refused(text: object) -> None:
    """Terminal escapes, direction overrides and lone surrogates are not printed at anyone later."""
    with pytest.raises(InvalidNameError) as refused:
        check_description(text)  # type: ignore[arg-type]
    assert str(refused.value).isprintable()


@given(st.text())
def test_an_accepted_description_survives_a_file(text: str) -> None:
    """What is accepted is written to a UTF-8 file and read back unchanged."""
    try:
        assert check_description(text) == text
    except InvalidNameError:
        return
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "description"
        path.write_bytes(text.encode("utf-8"))
        assert path.read_bytes().decode("utf-8") == text


def test_descriptions_may_have_lines_and_tabs() -> None:
    """A description may be more than one line."""
    assert check_description("a\n\tb") == "a\n\tb"
