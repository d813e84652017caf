"""Data given from Python: what is written of them, and that a run on them outlives its script."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import vipbench
from vipbench.api import Dataset, Split
from vipbench.engine.given.data import write_data
from vipbench.engine.planning.loading import load_dataset
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec

N = 40


def picture(i: int) -> Image.Image:
    pixels = np.random.default_rng(i).integers(0, 150, (12, 12, 3)) + 80 * (i % 2)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`0.png` to `39.png`, bright where the number is odd, and the same in class folders `tree`."""
    folder = tmp_path_factory.mktemp("share")
    for i in range(N):
        picture(i).save(folder / f"{i}.png")
        place = folder / "tree" / ("mel_anoma" if i % 2 else "nevus")
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i}.png")
    return folder


def frame(share: Path) -> pd.DataFrame:
    splits = ["train"] * 20 + ["dev"] * 8 + ["test"] * 12
    return pd.DataFrame(
        {
            "file": [f"{i}.png" for i in range(N)],
            "dx": [i % 2 for i in range(N)],
            "split": splits,
            "patient": [float(i) if i else np.nan for i in range(N)],
            "site": "x",
        }
    )


def load(source: str) -> tuple[Dataset, Any]:
    data = load_dataset(load_registry(), RunSpec(datasets=(source,)), source)
    return data.dataset, data.splits


def rows_of(source: str) -> list[dict[str, str]]:
    with Path(source.removeprefix("csv:")).open() as file:
        return list(csv.DictReader(file))


class Own(Dataset):
    """Arrays in memory."""

    name = "own"
    class_names = ("zebra", "None")
    templates = ("a drawing of {}.",)
    licence = "CC0"

    def load(self, root: Path | None) -> dict[str, Split]:
        def split(numbers: range) -> Split:
            images = [np.asarray(picture(i)) for i in numbers]
            labels = np.array([i % 2 for i in numbers])
            return Split(images, labels, tuple(map(str, numbers)), tuple(f"p{i}" for i in numbers))

        return {"train": split(range(20)), "val": split(range(20, 28)), "test": split(range(28, N))}


def test_a_list_is_drawn_and_its_images_stay_where_they_are(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(share)
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(N)]
    source = write_data("rows", rows, tmp_path)
    dataset, splits = load(source)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 24,
        "val": 4,
        "test": 12,
    }
    assert "60/10/30" in dataset.caption
    assert not (tmp_path / "data/rows").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    assert write_data("rows", rows, tmp_path) == source
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()} == kept
    # Groups stay whole; a split that is given is kept.
    grouped = [(share / f"{i}.png", "ab"[i % 2], None, f"p{i // 4}") for i in range(N)]
    _, splits = load(write_data("grouped", grouped, tmp_path))
    held = [set(split.groups) for split in splits.values()]
    assert sum(map(len, held)) == len(set.union(*held)) == 10
    given = [(*row, "train" if i < 30 else "test") for i, row in enumerate(rows)]
    _, splits = load(write_data("given", given, tmp_path))
    assert len(splits["test"]) == 10


def test_a_frame_with_columns_of_its_own_and_a_card(share: Path, tmp_path: Path) -> None:
    given = vipbench.data(
        frame(share),
        images=share,
        columns={"path": "file", "label": "dx", "group": "patient"},
        class_names=["benign", "bad"],
        templates=["a scan of {}."],
        symptoms={"benign": ["a round spot"], "bad": ["a dark hole"]},
        licence="CC BY 4.0",
    )
    dataset, splits = load(write_data("study", given, tmp_path))
    assert dataset.class_names == ("benign", "bad")
    assert dataset.templates == ("a scan of {}.",)
    assert dataset.licence == "CC BY 4.0"
    assert dataset.symptoms == {"benign": ("a round spot",), "bad": ("a dark hole",)}
    assert [len(split) for split in splits.values()] == [20, 8, 12]
    assert splits["train"].groups[:3] == ("0.png", "1", "2")
    assert str(share) not in Path(tmp_path / "data/study.csv").read_text()


def test_folders_mappings_and_dataset_objects(share: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    dataset, splits = load(write_data("tree", ImageFolder(share / "tree"), tmp_path))
    assert dataset.class_names == ("mel anoma", "nevus")
    assert sum(map(len, splits.values())) == N
    parts = {
        "train": [(picture(i), "ab"[i % 2]) for i in range(24)],
        "test": [(np.asarray(picture(i)), "ab"[i % 2]) for i in range(24, N)],
    }
    _, splits = load(write_data("memory", parts, tmp_path))
    assert len(splits["test"]) == N - 24
    assert splits["test"].open(0).tobytes() == picture(24).tobytes()
    assert len(list((tmp_path / "data/memory").glob("*.png"))) == N
    dataset, splits = load(write_data("own", Own(), tmp_path))
    assert dataset.class_names == ("None", "zebra")
    assert (dataset.templates, dataset.licence) == (Own.templates, "CC0")
    assert splits["val"].groups == tuple(f"p{i}" for i in range(20, 28))


def test_a_hugging_face_dataset(share: Path, tmp_path: Path) -> None:
    hugging = pytest.importorskip("datasets")
    features = hugging.Features(
        {"scan": hugging.Image(), "dx": hugging.ClassLabel(names=["a_a", "b", "unused"])}
    )

    def part(numbers: range) -> Any:
        values = {"scan": [picture(i) for i in numbers], "dx": [i % 2 for i in numbers]}
        return hugging.Dataset.from_dict(values, features=features)

    given = hugging.DatasetDict(
        {"train": part(range(20)), "validation": part(range(20, 28)), "test": part(range(28, N))}
    )
    dataset, splits = load(write_data("hub", given, tmp_path))
    assert dataset.class_names == ("a a", "b")
    assert [len(split) for split in splits.values()] == [20, 8, 12]
    assert splits["test"].open(0).tobytes() == picture(28).tobytes()
    _, splits = load(write_data("one", part(range(N)), tmp_path))
    assert sum(map(len, splits.values())) == N
    with pytest.raises(UsageError, match=r"0 columns .*Image .*'dx'.*columns="):
        write_data("none", part(range(4)).remove_columns("scan"), tmp_path)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (lambda s: [("a.png",)], ("entry 0", "(path, label[, split[, group]])")),
        (lambda s: pd.DataFrame({"file": ["a"], "label": [1]}), ("'file'", "'path'", "columns=")),
        (
            lambda s: vipbench.data(frame(s), columns={"path": "file", "label": "nix"}),
            ("'nix'", "'dx'"),
        ),
        (lambda s: [], ("no images",)),
        (lambda s: 3, ("3 of type int", "DataFrame")),
        (lambda s: [(s / "gone.png", "a"), (s / "0.png", "b")], ("gone.png",)),
        (lambda s: [(object(), "a")], ("row 0", "object")),
        (lambda s: [(s / "0.png", "a"), (s / "1.png", "b")], ("class 'a' has 1 image",)),
        (lambda s: {"train": [(s / "0.png", "a")], "test": frame(s)}, ("'path'",)),
    ],
)
def test_what_is_no_data(share: Path, tmp_path: Path, given: Any, facts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        write_data("bad", given(share), tmp_path)
    for fact in ("'bad'", *facts):
        assert fact in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_arguments_of_data_and_names(share: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="licence"):
        vipbench.data([], license="x")
    with pytest.raises(UsageError, match="label"):
        vipbench.data([], columns={"lable": "x"})
    with pytest.raises(UsageError, match="images: "):
        vipbench.data([], images=tmp_path / "gone")
    for name in ("a/b", "", "..", "x@fold-1", 3):
        with pytest.raises(UsageError, match=f"datasets: {name!r} "):
            write_data(name, [], tmp_path)
    rows = [(share / f"{i}.png", "ab"[i % 2]) for i in range(8)]
    outside = vipbench.data(rows, images=share / "tree")
    with pytest.raises(UsageError, match=r"row \d+: .*tree"):
        load(write_data("outside", outside, tmp_path))
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data/mine.csv").write_text("my own work")
    with pytest.raises(UsageError, match=r"mine\.csv"):
        write_data("mine", rows, tmp_path)
    with pytest.raises(UsageError, match="'NAME': DATA"):
        vipbench.plan(datasets=[("a.png", "b")], out=tmp_path)


def test_links_that_lead_elsewhere_are_followed(share: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for i in range(8):
        (tmp_path / f"links/{i}.png").symlink_to(share / f"{i}.png")
    rows = [(tmp_path / f"links/{i}.png", "ab"[i % 2]) for i in range(8)]
    source = write_data("linked", rows, tmp_path / "out")
    assert len(load(source)[1]["train"]) > 0
    card = yaml.safe_load((tmp_path / "out/data/linked.yaml").read_text())
    assert Path(card["images"]) == share.resolve()


def test_a_run_on_given_data_outlives_its_script(share: Path, tmp_path: Path) -> None:
    """One run with two kinds of data; its folder is moved; it is planned, verified and exported
    from another working directory."""
    script = tmp_path / "work/script.py"
    script.parent.mkdir()
    script.write_text(
        "import pandas as pd, vipbench\n"
        f"share = {str(share)!r}\n"
        "rows = [(f'{share}/{i}.png', 'ab'[i % 2]) for i in range(40)]\n"
        "frame = pd.DataFrame({'path': [f'{i}.png' for i in range(40)],\n"
        "    'label': [i % 2 for i in range(40)], 'fold': [i // 2 % 4 for i in range(40)]})\n"
        "found = vipbench.run(methods='ncm', backbones='tiny-clip', shots=2, seeds=[1],\n"
        "    views='none', out='out', quiet=True,\n"
        "    datasets=[{'rows': rows}, {'study': vipbench.data(frame, images=share)}])\n"
        "print(sorted(found.frame()['dataset']), sorted(map(int, found.frame()['n'])))\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("VIPBENCH_")}
    env |= {"VIPBENCH_CACHE": str(tmp_path / "cache"), "VIPBENCH_CONFIG": str(tmp_path / "config")}
    env["PYTHONPATH"] = str(Path(vipbench.__file__).parents[1])

    def python(*args: str | Path, cwd: Path) -> str:
        command = [sys.executable, *map(str, args)]
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert python(script, cwd=script.parent).strip() == "['rows', 'study'] [12, 40]"
    moved = tmp_path / "elsewhere/out"
    moved.parent.mkdir()
    shutil.move(script.parent / "out", moved)
    suite = RunSpec.from_yaml(moved / "suite.yaml")
    assert all(str(moved) in source for source in suite.datasets)
    listed = python(
        "-m", "vipbench", "run", "--suite", moved / "suite.yaml", "--dry-run", cwd=tmp_path
    )
    assert Counter(line.split()[0] for line in listed.splitlines() if line)["done"] == 5
    checked = python("-m", "vipbench", "verify", moved, "--rerun", "2", cwd=tmp_path)
    assert "identical" in checked
    bundle = tmp_path / "b.zip"
    python("-m", "vipbench", "export", moved, "--bundle", "-o", bundle, cwd=tmp_path)
    assert str(share).encode() not in bundle.read_bytes()
