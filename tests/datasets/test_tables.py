"""Tables as spreadsheets, programs and people write them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vipbench.api import DataError
from vipbench.datasets.csv_manifest import CsvDataset
from vipbench.datasets.reading.table import read_table

NAMES = [f"images/{i}.png" for i in range(1, 9)]
SPLITS = ["train"] * 4 + ["test"] * 4
CELL = st.text(st.sampled_from("ab ;,\t|\"'é=\n"), max_size=6)


@pytest.fixture
def folder(tmp_path, make_images) -> Path:
    make_images(tmp_path, NAMES)
    return tmp_path


def load(folder: Path, rows: list[list[str]], card: str = "", head: str = "path,label,split"):
    text = io.StringIO()
    csv.writer(text).writerows([head.split(","), *rows])
    (folder / "t.csv").write_text(text.getvalue(), encoding="utf-8")
    if card:
        (folder / "t.yaml").write_text(card, encoding="utf-8")
    dataset = CsvDataset(str(folder / "t.csv"))
    return dataset, dataset.load(None)


def labelled(*labels: str) -> list[list[str]]:
    return [[n, label, s] for n, label, s in zip(NAMES, labels, SPLITS, strict=True)]


def ids(splits) -> list[str]:
    return sorted(name for split in splits.values() for name in split.ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(st.lists(CELL, min_size=3, max_size=3), max_size=4),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_separator_and_encoding(tmp_path, rows, separator, encoding, end, output):
    text = io.StringIO()
    head = ["path", "label", "a;b,c\td"]
    csv.writer(text, delimiter=separator, lineterminator=end).writerows([head, *rows])
    first = f"sep={separator}{end}" if output else ""
    path = tmp_path / "t.csv"
    path.write_bytes((first + text.getvalue()).encode(encoding))
    found = list(read_table(path, ["path", "label", "split"]))
    stripped = [[cell.strip(" ") for cell in row] for _, row in found]
    assert stripped == [head, *([cell.strip(" ") for cell in row] for row in rows)]
    assert found[0][0].endswith(f"row {2 if output else 1}")


def test_what_cannot_be_decoded_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfep\x00a\x00t")
    with pytest.raises(DataError, match=r"t\.csv' .*UTF-16.* UTF-8"):
        list(read_table(path, ["path"]))
    path.write_bytes("path;é".encode("latin-1"))
    with pytest.raises(DataError, match=r"UTF-8 .*\(byte 5\)"):
        list(read_table(path, ["path"]))


def test_a_german_spreadsheet(folder):
    """Semicolons, a comma in numbers, a byte order mark, a `sep=` line, backslashes."""
    rows = [
        f'images\\{i}.png;"{"nevus; atypical" if i % 2 else "mel"}";{s};{i},0'
        for i, s in zip(range(1, 9), SPLITS, strict=True)
    ]
    text = "\ufeffsep=;\r\npath;label;split;group\r\n" + "\r\n".join(rows)
    (folder / "t.csv").write_text(text, encoding="utf-8")
    (folder / "t.yaml").write_text("class_names: {'nevus; atypical': atypical nevus}")
    dataset = CsvDataset(str(folder / "t.csv"))
    splits = dataset.load(None)
    assert dataset.class_names == ("mel", "atypical nevus")
    assert ids(splits) == NAMES
    assert set(splits["test"].groups) == {"5,0", "6,0", "7,0", "8,0"}


@pytest.mark.parametrize(
    "head",
    ["path,label,split,group", "\n\nPath,\u200bLABEL, Split ,Group", 'path, "label", split, group'],
)
def test_headers_as_people_write_them(folder, head):
    rows = [
        f'{n}, "{c}", {s}, {g}'
        for n, c, s, g in zip(NAMES, "abababab", SPLITS, "11223344", strict=True)
    ]
    (folder / "t.csv").write_text(head + "\n" + "\n".join(rows), encoding="utf-8")
    dataset = CsvDataset(str(folder / "t.csv"))
    splits = dataset.load(None)
    assert dataset.class_names == ("a", "b")
    assert set(splits["test"].groups) == {"3", "4"}


def test_a_column_of_patients_that_is_not_read_is_noted(folder):
    rows = [[*row, "1"] for row in labelled(*"abababab")]
    dataset, _ = load(folder, rows, head="path,label,split,Patient ID")
    (note,) = dataset.notes
    assert "'Patient ID'" in note
    assert "columns: {group: Patient ID}" in note


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "", "\u200b", "N/A", "-", "?"])
def test_a_label_that_stands_for_none_is_an_error_of_its_row(folder, name):
    with pytest.raises(DataError, match=r"t\.csv', row 4 "):
        load(folder, labelled("a", "b", name, "b", *"abab"))
    if name.isascii() and name:
        card = f"class_names: {{'{name}': not seen}}"
        dataset, _ = load(folder, labelled("a", "b", name, "b", *"abab"[:3], name), card)
        assert "not seen" in dataset.class_names


def test_labels_that_look_alike_are_one_class_or_refused(folder):
    labels = ["normal lung", "mel", "normal\u00a0lung", "mel\u200b", "normal  lung", *["mel"] * 2]
    dataset, splits = load(folder, labelled(*labels, "normal lung "))
    assert dataset.class_names == ("mel", "normal lung")
    assert splits["test"].labels.tolist() == [1, 0, 0, 1]
    assert any(r"'normal\xa0lung'" in note for note in dataset.notes)
    assert any(r"'mel\u200b'" in note for note in dataset.notes)
    # Accents in two forms, and numbers in two.
    dataset, splits = load(folder, labelled(*["é", "1", "e\u0301", "1.0", "é", "01", "é", "1"]))
    assert dataset.class_names == ("1", "é")
    assert splits["test"].counts(2) == [2, 2]
    with pytest.raises(DataError, match=r"'mel' and 'mеl' .* U\+0435 CYRILLIC SMALL LETTER IE"):
        load(folder, labelled("mel", "a", "mеl", "a", "mel", "a", "mеl", "a"))


def test_the_card_decides_which_labels_are_one(folder):
    labels = labelled("1", "1.0", "01", "0", "1", "1.0", "01", "0")
    assert load(folder, labels)[0].class_names == ("0", "1")
    assert load(folder, labels, "class_names: {'1.0': mel}")[0].class_names == ("0", "mel")
    dataset, splits = load(folder, labels, "class_names: {'01': first, '1': one}")
    assert dataset.class_names == ("0", "first", "one")
    assert splits["test"].counts(3) == [1, 1, 2]


def test_lists_of_labels_are_refused(folder):
    for label in ("a|b", "a;b", "['a', 'b']", "[1, 0]", "a,b", "b/a", "a and b", "b#a", "a + b"):
        with pytest.raises(DataError, match=r"row 3: .* multi-label") as caught:
            load(folder, labelled("a", label, "a", "b", "a", "b", label, "b"))
        assert f"'{label}'" in str(caught.value)
        assert " 2 rows" in str(caught.value)


@pytest.mark.parametrize(("fifth", "word"), [("0", "write"), ("1", "multi-label")])
def test_one_hot_columns_are_named(folder, fifth, word):
    rows = [
        [n, s, str(i % 2), f"{(i + 1) % 2}.0", "7"]
        for i, (n, s) in enumerate(zip(NAMES, SPLITS, strict=True))
    ]
    rows[4][2] = fifth
    for path in ("path", "image"):
        with pytest.raises(DataError, match=word) as caught:
            load(folder, rows, head=f"{path},split,MEL,NV,age")
        assert "'MEL', 'NV' " in str(caught.value)


def test_one_hot_columns_beside_labels_are_noted(folder):
    rows = [[*row, str(i % 2), str(int(i < 3))] for i, row in enumerate(labelled(*"abababab"))]
    dataset, _ = load(folder, rows, head="path,label,split,MEL,NV")
    (note,) = [note for note in dataset.notes if "'MEL', 'NV'" in note]
    assert "1 row" in note
    assert "'label'" in note


def test_findings_with_blanks_and_words_are_named(folder):
    found = [("True", "1.0"), ("no", ""), ("YES", "-1"), ("FALSE", "nan")] * 2
    rows = [[n, s, *f] for n, s, f in zip(NAMES, SPLITS, found, strict=True)]
    with pytest.raises(DataError, match=r"'Edema', 'Effusion' .*2 rows"):
        load(folder, rows, head="path,split,Edema,Effusion")


def test_spellings_of_a_patient_are_one_group(folder):
    groups = ["0003", "3", "P07", "p7", "4", "4.0", "nan", ""]
    rows = [[*row, g] for row, g in zip(labelled(*"abababab"), groups, strict=True)]
    dataset, splits = load(folder, rows, head="path,label,split,group")
    held = [group for name in ("train", "val", "test") for group in splits[name].groups]
    assert len(set(held)) == 5
    assert splits["test"].groups == ("4", "4", NAMES[6], NAMES[7])
    assert any(note.startswith("3 ") and "'group'" in note for note in dataset.notes)
    assert any("2 rows " in note and "'group'" in note for note in dataset.notes)
