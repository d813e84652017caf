"""Data without a split: refused with the command that draws one, which then does."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
from PIL import Image

from vipbench.cli.commands.dataset import write_split

Cli = Callable[..., "CompletedProcess[str]"]


def write_images(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / name)


def test_from_a_table_without_a_split_to_one_that_runs(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "my data"
    names = [f"{i:03}.png" for i in range(120)]
    write_images(data, names)
    # A third of the images is of the rarer class; three images of each patient.
    rows = [f"{n},{'rare' if i % 9 < 3 else 'common'},p{i // 3}" for i, n in enumerate(names)]
    (data / "skin.csv").write_text("path,label,patient id\n" + "\n".join(rows))
    (data / "skin.yaml").write_text("columns: {group: patient id}\nlicence: mine\n")
    run = ("--methods", "linear-probe", "--backbones", "tiny-clip", "--shots", "2", "--seeds", "1")

    refused = cli("run", "--datasets", "csv:skin.csv", *run, "--data-root", data)
    assert refused.returncode == 2
    command = refused.stderr.partition(": vipbench ")[2].strip()
    assert command == (
        "dataset split csv:skin.csv --group 'patient id' --ratios 6/1/3 --seed 1 --data-root "
        f"{shlex.quote(str(data))}"
    )
    drawn = cli(*shlex.split(command))
    assert drawn.returncode == 0, drawn.stderr
    assert "40 groups" in drawn.stdout
    with (data / "skin-split.csv").open() as file:
        found = list(csv.DictReader(file))
    assert sorted(row["path"] for row in found) == names
    # Disjoint in patients, and each split with its share of each class.
    places = {(row["group"], row["split"]) for row in found}
    assert len(places) == len({group for group, _ in places}) == 40
    for label, count in (("rare", 42), ("common", 78)):
        shares = Counter(row["split"] for row in found if row["label"] == label)
        for split, share in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
            assert abs(shares[split] / count - share) < 0.05, (label, shares)

    done = cli(
        *("run", "--datasets", "csv:skin-split.csv", *run, "--views", "none"),
        *("--data-root", data, "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "skin-split: licence: mine" in done.stdout


def test_a_folder_s_split_can_be_written_down_and_wrong_ratios_are_named(
    cli: Cli, tmp_path: Path
) -> None:
    write_images(tmp_path / "x", [f"{c}/{i}.png" for c in ("a", "b") for i in range(10)])
    for wrong in ("6/1", "0/1/1", "6/1/x"):
        refused = cli("dataset", "split", f"folder:{tmp_path / 'x'}", "--ratios", wrong)
        assert refused.returncode == 2
        assert re.search(f"'{wrong}'.*train/val/test", refused.stderr)
    done = cli("dataset", "split", f"folder:{tmp_path / 'x'}", "--ratios", "3/1/1", "--seed", "5")
    assert [line.split() for line in done.stdout.splitlines()[:3]] == [
        ["class", "train", "val", "test"], ["a", "6", "2", "2"], ["b", "6", "2", "2"]
    ]  # fmt: skip
    assert f"csv:{tmp_path / 'x' / 'split.csv'}" in done.stdout


def test_a_split_depends_on_content_alone(tmp_path: Path) -> None:
    """With other names, other patients' names and another order, every image goes where it went."""

    def split(folder: Path, name: str, patient: str, step: int) -> dict[bytes, str]:
        names = [f"{name}{i}.png" for i in range(40)]
        write_images(folder, names)
        rows = [f"{n},{'ab'[i // 3 % 2]},{patient}{-i // 3}" for i, n in enumerate(names)]
        table = folder / "t.csv"
        table.write_text("path,label,group\n" + "\n".join(rows[::step]))
        write_split(f"csv:{table}")
        with (folder / "t-split.csv").open() as file:
            return {(folder / r["path"]).read_bytes(): r["split"] for r in csv.DictReader(file)}

    one = split(tmp_path / "one", "x", "p", 1)
    assert one == split(tmp_path / "two", "renamed", "other", -1)
    assert set(one.values()) == {"train", "val", "test"}
