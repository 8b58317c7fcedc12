"""Output as lines: whatever is written, in whatever pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.launch import output
from ckpt_lib.launch.output import BURST_LINES, MAX_LINE_CHARACTERS, TAIL_LINES, Output

PIECES = st.lists(
    st.binary(max_size=12) | st.sampled_from([b"\n", b"\r", b"\r\n", "é€😀".encode(), b"\xff"]), max_size=30
)


def lines_of(*pieces: bytes) -> list[str]:
    logged: list[str] = []
    found = Output(logged.append)
    for piece in pieces:
        found.write("stdout", piece)
    found.finish()
    return logged


@given(PIECES)
def test_lines_do_not_depend_on_how_they_arrive(pieces: list[bytes]) -> None:
    """In one piece, as it comes, or byte by byte: the same lines, none of which is lost."""
    whole = b"".join(pieces)
    lines = lines_of(whole)
    assert lines_of(*pieces) == lines
    assert lines_of(*(whole[at : at + 1] for at in range(len(whole)))) == lines
    assert len(lines) in (whole.count(b"\n"), whole.count(b"\n") + 1)
    assert not any("\n" in line or "\r" in line or "\0" in line for line in lines)


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"\n\n", ["", ""]),
        (b"windows\r\n", ["windows"]),
        (b" 10%\r 50%\r100%\ndone", ["100%", "done"]),
        (b" 10%\r 50%\r", [" 50%"]),
        (b"\xff\xfe and \xc3\xa9\n", ["\\xff\\xfe and é"]),
        (b"cut \xc3", ["cut \\xc3"]),
        (b"nul \0\n", ["nul \\x00"]),
        ("a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"]),
    ],
)
def test_lines_are_what_a_terminal_shows(written: bytes, lines: list[str]) -> None:
    """Progress bars in their last state, bytes that are no text, and only line feeds end a line."""
    assert lines_of(written) == lines


def test_a_long_line_comes_in_pieces() -> None:
    """A line without an end is logged as it grows, and takes no more memory than a piece."""
    logged: list[str] = []
    found = Output(logged.append)
    for _ in range(10):
        found.write("stdout", b"x" * MAX_LINE_CHARACTERS)
    assert len(logged) == 9
    found.finish()
    assert "".join(logged) == "x" * 10 * MAX_LINE_CHARACTERS


def test_an_unfinished_line_is_logged_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question without a line feed is seen while it is waited for; what follows is a line of its own."""
    logged: list[str] = []
    found = Output(logged.append)
    found.write("stderr", b"Continue? ")
    found.tick()
    assert logged == []
    monkeypatch.setattr(output, "PARTIAL_SECONDS", -1.0)
    found.tick()
    assert logged == ["Continue? "]
    found.write("stderr", b"yes\n")
    assert logged == ["Continue? ", "yes"]


def test_what_the_log_cannot_take_is_counted() -> None:
    """The log gets the first lines, how many were left out, and the last ones."""
    count = 3 * BURST_LINES
    logged = lines_of(b"".join(b"%d\n" % number for number in range(count)))
    (note,) = [at for at, line in enumerate(logged) if line.startswith("[")]
    assert logged[:BURST_LINES] == [str(number) for number in range(BURST_LINES)]
    assert f"[{count - note:,} lines left out" in logged[note]
    assert logged[note + 1 :] == [str(number) for number in range(count - TAIL_LINES, count)]


def test_the_log_goes_on_after_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the flood is over, the log says what was left out, and takes lines again."""
    logged: list[str] = []
    found = Output(logged.append)
    found.write("stdout", b"x\n" * 2 * BURST_LINES)
    found.note_dropped(1 << 20)
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    found.tick()
    assert "lines and 1.0 MiB left out" in logged[-1]
    found.write("stdout", b"after\n")
    assert logged[-1] == "after"
