"""Words, columns and progress lines."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipbench.engine import progress
from vipbench.text import clean, columns, duration, plural, ranges, shots_text


@given(st.text())
def test_clean_is_one_printable_line(text: str) -> None:
    line = clean(text, longest=40)
    assert line.isprintable()
    assert len(line) <= 40


def test_clean_keeps_what_can_be_read() -> None:
    assert clean("a\n  b\tc\x1b[31m é ±") == "a b c\\x1b[31m é ±"


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20, unique=True))
def test_ranges_hold_the_same_numbers(numbers: list[int]) -> None:
    from vipbench.runspec.values import seeds

    assert seeds(ranges(numbers)) == tuple(numbers)


def test_ranges() -> None:
    assert ranges([1, 2, 3]) == "1-3"
    assert ranges([1, 2, 5, 7, 8, 9]) == "1, 2, 5, 7-9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_061, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_small_words() -> None:
    assert plural(1, "cell") == "1 cell"
    assert plural(2345, "cell") == "2,345 cells"
    assert [shots_text(k) for k in (0, 1, 2, "full")] == ["zero-shot", "1 shot", "2 shots", "full"]


def test_columns() -> None:
    assert columns([]) == []
    assert columns([("a", 1, "x\ny"), ("bcd", 20, "")]) == ["a    1   x y", "bcd  20"]


def test_log_lines_become_rarer(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    log = progress.Log(clock=lambda: now[0])
    log.start(4000)
    for i in range(1, 3001):
        now[0] += 1
        log.update(i, 0.5, 2, "vip")
    lines = capsys.readouterr().out.splitlines()
    assert 10 < len(lines) < 40
    assert re.search("1 .*4,000 .*2 failed, ", lines[0])
    assert "vip" in lines[0]
    assert "about " in lines[-1]
    assert all(line.isprintable() for line in lines)


def test_encoding_is_shown_with_its_own_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    log = progress.Log(clock=lambda: now[0])
    log.start(10)
    for done in range(0, 4001, 32):
        log.encoding(done, 4000, 3)
        now[0] += 8
    lines = capsys.readouterr().out.splitlines()
    assert re.search("32/4,000 .*16 min 32 s .*3 cells", lines[0])
    assert "note:" not in "".join(lines)
    # Cells are timed from where the encoding ended.
    for share in (0.001, 0.002, 0.01):
        now[0] += 10
        log.update(0, share, 0, "vip")
    [note] = [line for line in capsys.readouterr().out.splitlines() if "note:" in line]
    assert "vip" in note
    assert "--estimate" in note
    for fact in ("h", "min"):
        assert fact in note


def test_no_guess_before_there_is_anything_to_go_by() -> None:
    assert progress.remaining(100, 2.9, 10) is None
    assert progress.remaining(100, 9, 1000) is None
    assert progress.remaining(0.5, 5, 10) is None
    assert progress.remaining(100, 5, 10) == 100
