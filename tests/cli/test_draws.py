"""What a run draws depends on images, shots and seed alone: harmless changes of a table of images
leave every score as it is, to the last bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.conftest import Cli
from vipbench.results import Store

Row = tuple[str, str, str, str]  # path, label, split, patient
Scores = dict[str, npt.NDArray[np.float32]]  # image id -> (C,)

METHODS = ("ncm", "linear-probe", "coop")
COUNTS = {"train": 8, "val": 5, "test": 6}
NAMES = ("normal", "pneumonia", "tumour")


def write_images(folder: Path) -> list[Row]:
    """Three classes of noise, hard enough that other draws give other scores."""
    rng, rows = np.random.default_rng(0), []
    for label, name in enumerate(NAMES):
        for split, count in COUNTS.items():
            for i in range(count):
                path = f"{split}{label}{i}.png"
                pixels = rng.integers(0, 200, (16, 16, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
                rows.append((path, name, split, f"p{split}{label}{i // 2}"))
    return rows


def write_table(folder: Path, name: str, rows: list[Row]) -> str:
    lines = ["path,label,split,patient", *map(",".join, rows)]
    (folder / f"{name}.csv").write_text("\n".join(lines))
    return f"csv:{folder / f'{name}.csv'}"


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """The same images under tables that differ in what must have no say."""
    rows = write_images(tmp_path)
    turned = list(rows)
    random.Random(1).shuffle(turned)
    respelled = {"normal": "A normal", "pneumonia": "B", "tumour": "c_3"}
    changed = {
        "plain": rows,
        "turned": turned,
        "renamed": rows,
        "respelled": [(path, respelled[label], *rest) for path, label, *rest in rows],
        "tested-less": [row for i, row in enumerate(rows) if row[2] != "test" or i % 3],
    }
    cards = {"renamed": "class_names: {normal: no finding, tumour: mass}\n"}
    for name, text in cards.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return [write_table(tmp_path, name, some) for name, some in changed.items()]


def scores_of(out: Path) -> dict[tuple[object, ...], dict[str, Scores]]:
    """(method, shots, seed) -> dataset -> scores."""
    found: dict[tuple[object, ...], dict[str, Scores]] = {}
    with Store(out, readonly=True) as store:
        for record in store.records():
            assert record.ok, record.error
            stored = store.predictions(record.key)
            assert stored is not None
            cell = record.cell
            by_id = dict(zip(stored.ids, stored.scores, strict=True))
            found.setdefault((cell.method, cell.shots, cell.seed), {})[cell.dataset] = by_id
    return found


def test_harmless_changes_change_no_score(cli: Cli, tables: list[str], tmp_path: Path) -> None:
    ran = cli(
        "run", "--backbones", "tiny-clip", "--datasets", ",".join(tables), "--seeds", "1,2",
        "--methods", "ncm,linear-probe,coop[epochs=3]", "--shots", "2,full", "--views", "2",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = scores_of(tmp_path / "out")
    assert len(found) == len(METHODS) * 4
    for (method, *_), by_dataset in found.items():
        plain = by_dataset["plain"]
        assert len(by_dataset) == len(tables)
        for name, scores in by_dataset.items():
            if method.startswith("coop") and name in ("renamed", "respelled"):
                continue  # it reads the names
            assert set(scores) <= set(plain)
            assert len(scores) == len(plain) or name == "tested-less"
            for image, row in scores.items():
                assert np.array_equal(row, plain[image]), (method, name, image)
    # Another seed does change them.
    for method in {method for method, *_ in found}:
        one, two = (found[method, 2, seed]["plain"]["test00.png"] for seed in (1, 2))
        assert not np.array_equal(one, two)
