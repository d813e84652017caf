"""YAML from strangers: read safely, with lines, and written so that it reads back."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipbench.errors import UsageError
from vipbench.runspec.yaml import dump_yaml, format_scalar, parse_scalar, parse_yaml, read_yaml

words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn", "Cf", "Zl", "Zp")))
tricky = st.sampled_from(
    ["on", "2e-3", "010", "1:30", "2024-01-01", "~", "", " x", "x ", "a: b", "#", "it's", "'", "-"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words | tricky


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", False),
        ("on", True),
        ("true", True),
        ("2e-3", 0.002),
        ("1e5", 1e5),
        ("-.5", -0.5),
        ("010", 10),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'off'", "off"),
        ('"2"', "2"),
        ("null", None),
        ("", None),
        ("a photo of a {}.", "a photo of a {}."),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


@given(scalars, st.sampled_from(["", ",[]"]))
def test_scalars_read_back(value: object, quote: str) -> None:
    found = parse_scalar(format_scalar(value, quote))  # type: ignore[arg-type]
    assert found == value
    assert type(found) is type(value)


@given(
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
        max_leaves=20,
    )
)
def test_documents_read_back(value: object) -> None:
    assert parse_yaml(dump_yaml(value)).value == value


def test_not_a_number_reads_back() -> None:
    assert math.isnan(parse_yaml(dump_yaml([math.nan])).value[0])


def test_lines() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  - c: 2\n")
    assert document.line(("b",)) == 2
    assert document.line(("b", 1, "c")) == 4
    assert document.line(("b", 1, "nothing")) == 4
    assert document.line(("z",)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "in line 1)"),
        ("x:\n  a: 1\n  a: 2\n", "'a' "),
        ("a: &x [*x]", "line 1: "),
        ("a: 1\nb: &x 1\n", "line 2: "),
        ("base: {a: 1}\nb: {<<: {a: 2}}\n", "line 2: "),
        (
            "a: !!python/object/apply:os.system [ls]",
            "python/object/apply:os.system'",
        ),
        ("a: !!python/name:os.system", "os.system"),
        ("a: !thing 1", "'!thing'"),
        ("a: !!timestamp 2024-01-01", "timestamp"),
        ("a: !!binary aGk=", "binary"),
        ("a: !!int abc", "abc"),
        ("a: !!bool maybe", "maybe"),
        ("a: [1", "line 1: "),
        ("a: *nope", "aliases"),
        ("\ta: 1", "line 1: "),
        ("a: \x01", "(number 4)"),
        ("a\n---\nb", "document"),
        ("? [a]\n: 1", "unhashable"),
        ("[" * 30000, "nested"),
        ("{" * 30000, "nested"),
        ("a: " + "9" * 5000, "digits"),
        ("a: [" + "1," * 20000 + "]", "10,000"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "suite 'x.yaml'")
    assert str(caught.value).startswith("suite 'x.yaml'")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 5  # well under a second on a machine that has time


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: [x,\r\n y]\r\n")
    assert read_yaml(file).value == {"a": 1, "b": ["x", "y"]}


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exist"):
        read_yaml(tmp_path / "none.yaml", "suite")
    with pytest.raises(UsageError, match="file"):
        read_yaml(tmp_path, "suite")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: é".encode("latin-1"))
    with pytest.raises(UsageError, match=r"UTF-8 .*\(byte 3\)"):
        read_yaml(latin, "suite")
    big = tmp_path / "big.yaml"
    big.write_text("a: " + "x" * 70_000)
    with pytest.raises(UsageError, match="64 KiB"):
        read_yaml(big, "suite")
