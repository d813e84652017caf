"""Any bytes in any file that a stranger may send: read, or refused in words; nothing else.

The corpus is the `@example`s here and what hypothesis keeps in `.hypothesis/`. More cases:
`VIPBENCH_FUZZ=5000 pytest tests/fuzz`.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.results.samples import scored
from tests.test_dicom import CT, LUNG, dicom, noise
from vipbench.api import DataError
from vipbench.datasets.csv_manifest import CsvDataset
from vipbench.datasets.derm7pt import Derm7ptDataset
from vipbench.datasets.npz import NpzDataset
from vipbench.datasets.split_file import SplitFileDataset
from vipbench.errors import UsageError
from vipbench.images import ImageError, dicom_value, open_image
from vipbench.results import Record
from vipbench.results.sharing.files import read_file, write_rows
from vipbench.results.sharing.rows import COLUMNS, export_rows, read_rows
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec
from vipbench.symptoms import load_symptoms

CASES = int(os.environ.get("VIPBENCH_FUZZ", "150"))
fuzz = settings(max_examples=CASES, suppress_health_check=list(HealthCheck), deadline=None)
REFUSED = (DataError, UsageError)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)
rows = st.lists(st.lists(st.text(max_size=12) | st.integers(-2, 3), max_size=4), max_size=5)
split_documents = st.fixed_dictionaries({"train": rows, "val": rows, "test": rows}) | values
words = st.sampled_from(["path", "label", "split", "train", "test", "a/1.png", '"', ",", "\n", "\r",
                         "\0", "\ufeff", "..", "x", "y", "sha256", "group"])  # fmt: skip
csv_texts = st.lists(words, max_size=60).map("".join) | st.text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def altered(good: bytes, places: list[tuple[int, int]], cut: int) -> bytes:
    content = bytearray(good)
    for place, value in places:
        content[place % len(content)] = value
    return bytes(content[: len(content) - cut % len(content)] if cut else content)


changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)


@fuzz
@given(document=split_documents)
@example(document={"train": [["a", 1e308, "x"]], "val": [], "test": [[]]})
def test_split_json(folder: Path, document: object) -> None:
    path = folder / "split.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(REFUSED):
        SplitFileDataset(str(path)).load(folder)


@fuzz
@given(content=st.binary(max_size=200) | st.text().map(lambda t: t.encode("utf-8", "replace")))
@example(content=b"[" * 100_000)
@example(content=b'{"a": 1' + b"0" * 5000 + b"}")
@example(content=b'{"a": NaN, "a": []}')
def test_any_bytes_as_json(folder: Path, content: bytes) -> None:
    path = folder / "any.json"
    path.write_bytes(content)
    with pytest.raises(REFUSED):
        SplitFileDataset(str(path)).load(folder)
    with pytest.raises(REFUSED):
        load_symptoms(path, ["nevus", "melanoma"])


@fuzz
@given(document=st.dictionaries(st.sampled_from(["nevus", "melanoma", "x"]), values) | values)
def test_symptom_json(folder: Path, document: object) -> None:
    path = folder / "symptoms.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        found = load_symptoms(path, ["nevus", "melanoma"])
    except REFUSED:
        return
    assert set(found.symptoms) == {"nevus", "melanoma"}


@fuzz
@given(text=csv_texts)
@example(text="path,label,split\n" + '"' * 200_000)
@example(text="path,label,split\n" + "a" * 200_000 + ",x,train\n")
def test_csv_manifest(folder: Path, text: str) -> None:
    (folder / "m.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(REFUSED):
        CsvDataset("m.csv").load(folder)


@fuzz
@given(text=csv_texts)
def test_meta_csv(folder: Path, text: str) -> None:
    base = folder / "derm7pt"
    (base / "meta").mkdir(parents=True, exist_ok=True)
    (base / "images").mkdir(exist_ok=True)
    (base / "meta/meta.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    for name in ("train", "valid", "test"):
        (base / f"meta/{name}_indexes.csv").write_text("indexes\n0\n")
    with pytest.raises(REFUSED):
        Derm7ptDataset(None).load(folder)


def npz() -> bytes:
    stream, labels = io.BytesIO(), np.array([[0], [1], [0], [1]], np.uint8)
    arrays = {f"{s}_images": np.zeros((4, 8, 8), np.uint8) for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": labels for s in ("train", "val", "test")}
    np.savez(stream, **arrays)
    return stream.getvalue()


@fuzz
@given(places=changes, cut=st.integers(0, 3000))
def test_npz(folder: Path, places: list[tuple[int, int]], cut: int) -> None:
    path = folder / "toy.npz"
    path.write_bytes(altered(npz(), places, cut))
    try:
        splits = NpzDataset(str(path)).load(None)
    except REFUSED:
        return
    assert {len(split) for split in splits.values()} == {4}


@fuzz
@given(content=st.binary(max_size=100) | st.text().map(lambda t: t.encode("utf-8", "replace")))
@example(content=b"methods: !!python/object/apply:os.system [ls]")
@example(content=b"a: &a [*a]")
def test_suite_yaml(folder: Path, content: bytes) -> None:
    path = folder / "suite.yaml"
    path.write_bytes(content)
    try:
        RunSpec.from_yaml(path)
    except UsageError:
        return


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An export of two records in each format."""
    out, found = tmp_path_factory.mktemp("exported"), {}
    with Store(out) as store:
        for seed in (1, 2):
            store.add(*scored(seed))
        for form in ("csv", "jsonl", "parquet"):
            write_rows(out / f"x.{form}", export_rows(store, None), form)
            found[form] = (out / f"x.{form}").read_bytes()
    return found


def imported(path: Path) -> list[Record]:
    """What `vipbench import` would take."""
    return [record for record, _ in read_rows(read_file(path), path.name)]


@fuzz
@given(form=st.sampled_from(["csv", "jsonl", "parquet"]), places=changes, cut=st.integers(0, 9000))
@example(form="jsonl", places=[], cut=1)
@example(form="csv", places=[(0, 0)], cut=0)
def test_altered_exports(
    folder: Path, exported: dict[str, bytes], form: str, places: list[tuple[int, int]], cut: int
) -> None:
    path = folder / f"altered.{form}"
    path.write_bytes(altered(exported[form], places, cut))
    try:
        found = imported(path)
    except REFUSED:
        return
    # What is taken is what was exported: never another number.
    good = [scored(seed)[0].metrics for seed in (1, 2)]
    assert [record.metrics for record in found] == good[: len(found)]


@fuzz
@given(
    form=st.sampled_from(["csv", "jsonl", "parquet"]),
    content=st.binary(max_size=200) | st.text().map(lambda t: t.encode("utf-8", "replace")),
)
@example(form="jsonl", content=b"[" * 100_000)
@example(form="jsonl", content=b'{"export_schema": 1' + b"0" * 5000 + b"}")
@example(form="csv", content=b'"' * 200_000)
@example(form="parquet", content=b"PAR1" + bytes(20) + b"PAR1")
def test_any_bytes_as_export(folder: Path, form: str, content: bytes) -> None:
    path = folder / f"any.{form}"
    path.write_bytes(content)
    try:
        found = imported(path)
    except REFUSED:
        return
    assert found == []


@fuzz
@given(number=st.sampled_from([0, 1]), name=st.sampled_from(COLUMNS), value=values)
def test_any_value_in_an_export(
    folder: Path, exported: dict[str, bytes], number: int, name: str, value: object
) -> None:
    rows = [json.loads(line) for line in exported["jsonl"].splitlines()]
    rows[number][name] = value
    path = folder / "value.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    try:
        found = imported(path)
    except REFUSED:
        return
    assert [r.metrics for r in found] == [scored(seed)[0].metrics for seed in (1, 2)]


@fuzz
@given(places=changes, cut=st.integers(0, 400))
def test_a_dicom_file_that_is_altered(folder: Path, places: list, cut: int) -> None:
    path = folder / "good.dcm"
    if not path.exists():
        dicom(path, noise(12), bits=12, **CT, **LUNG)
    other = folder / "other.dcm"
    other.write_bytes(altered(path.read_bytes(), places, cut))
    for read in (open_image, lambda file: dicom_value(file, "PatientID")):
        with suppress(ImageError):
            read(other)
