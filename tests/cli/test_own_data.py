"""A table in one folder, its images in another, with what goes wrong in real data: from the run to
its bundle."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from vipbench.cli.commands.reproduce import reproduce_command
from vipbench.errors import UsageError
from vipbench.results import Store
from vipbench.results.sharing.bundle import read_bundle, write_bundle

Cli = Callable[..., "CompletedProcess[str]"]
RUN = (
    *("--backbones", "tiny-clip", "--methods", "ncm,zero-shot,symptoms-mean", "--shots", "2"),
    *("--seeds", "1", "--views", "none", "--validation", "none"),
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """`project/study.csv` and `share/x/*.png`; two test images are copies of training images, one
    of them under another class."""
    rng = np.random.default_rng(0)
    (tmp_path / "share/x").mkdir(parents=True)
    rows = ["path;label;split;patient"]
    for i in range(40):
        split = "train" if i < 20 else "val" if i < 24 else "test"
        noise = rng.integers(0, 100, (16, 16)) + 120 * (i % 2)
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"share/x/{i}.png")
        rows.append(f"x\\{i};{i % 2};{split};00{i},0")
    for copy, of in ((30, 0), (32, 1)):
        shutil.copy(tmp_path / f"share/x/{of}.png", tmp_path / f"share/x/{copy}.png")
    project = tmp_path / "project"
    project.mkdir()
    (project / "study.csv").write_text("\n".join(rows))
    (project / "study.yaml").write_text(
        "columns: {group: patient}\nsymptoms: {'0': [dark patch], '1': [bright patch]}\n"
    )
    return project


def test_a_table_with_images_on_a_share(cli: Cli, project: Path, tmp_path: Path) -> None:
    share, out = tmp_path / "share", tmp_path / "out"
    source = f"csv:{project / 'study.csv'}"
    refused = cli("run", "--datasets", source, *RUN, "--out", out)
    assert refused.returncode == 2
    assert "row 2" in refused.stderr
    assert "--images DIR" in refused.stderr

    done = cli("run", "--datasets", source, "--images", "../share", *RUN, "--out", out, cwd=project)
    assert done.returncode == 0, done.stderr
    sentence = "2 images are both in train and test, 1 of them under two classes"
    output = done.stdout + done.stderr
    for part in (sentence, "train 'x/1.png' (1) and test 'x/32.png' (0)", "class_names"):
        assert part in output
    assert sentence in (out / "table.md").read_text()
    with Store(out, readonly=True) as store:
        records = {record.cell.method: record for record in store.records()}
        predictions = store.predictions(records["ncm"].key)
    assert predictions is not None
    assert sorted(predictions.ids)[:2] == ["x/24.png", "x/25.png"]
    assert any("x/32.png" in note for note in records["ncm"].to_dict()["data"]["notes"])
    # Who reads class names, and who does not.
    assert any("('0', '1')" in note for note in records["zero-shot"].notes)
    assert not records["ncm"].notes

    # The run's own suite goes on from anywhere; `explain` finds the images by it, or by the flag.
    again = cli("run", "--suite", out / "suite.yaml")
    assert "Nothing to do" in again.stdout, again.stderr
    (moved := tmp_path / "moved").mkdir()
    share.rename(moved / "share")
    page = tmp_path / "page.html"
    asked = ("explain", out, "--errors", "1", "-o", page)
    gone = cli(*asked)
    assert gone.returncode == 2
    assert "--images names" in gone.stderr
    explained = cli(*asked, "--images", f"study={moved / 'share'}")
    assert explained.returncode == 0, explained.stderr
    (moved / "share").rename(share)

    # What leaves names no folder, no image and no patient.
    bundle = tmp_path / "run.zip"
    assert cli("export", out, "--bundle", "-o", bundle).returncode == 0
    with zipfile.ZipFile(bundle) as archive:
        whole = b"".join(archive.read(name) for name in archive.namelist())
        assert b"images:" not in archive.read("suite.yaml")
    for text in (str(tmp_path), "x/32.png", "x\\\\32", "0032"):
        assert text.encode() not in whole
    assert sentence.encode() in whole

    # A bundle that names files of the user's, or where jobs are to run, is refused before anything
    # is written.
    _, files = read_bundle(bundle)
    suite = files["suite.yaml"].decode()
    manifest = json.loads(zipfile.ZipFile(bundle).read("manifest.json"))
    manifest.pop("files")
    files.pop("manifest.json", None)
    for key, named in (
        (f"images: {share}", "folders of images.*share"),
        (f"datasets: ['folder:{share}']", "data by a path .*share"),
        ("datasets: ['csv:study.csv']", "data by a path .*study"),
        ("datasets: ['folder:~/x']", "data by a path .*~"),
        (f"backbones: ['openclip:RN50+gelu@{share}/x']", "weights by a path .*share"),
        ("executor: slurm", "an executor .*slurm"),
        ("track: [wandb]", "trackers .*wandb"),
    ):
        kept = [line for line in suite.splitlines() if line.split(":")[0] != key.split(":")[0]]
        files["suite.yaml"] = "\n".join([*kept, key]).encode()
        write_bundle(tmp_path / "hostile.zip", files, manifest)
        with pytest.raises(UsageError, match=f"names {named}"):
            reproduce_command(tmp_path / "hostile.zip", tmp_path / "o", None, [], True, 1e-3)
        assert not (tmp_path / "o").exists()


def test_audit_and_split_take_the_folder(cli: Cli, project: Path, tmp_path: Path) -> None:
    share, source = tmp_path / "share", f"csv:{project / 'study.csv'}"
    audited = cli("audit", source, "--images", f"study={share}")
    assert audited.returncode == 1
    assert "train 'x/0.png' = test 'x/30.png'" in audited.stdout
    for command in (("audit", source), ("dataset", "split", f"csv:{project / 'raw.csv'}")):
        lines = (project / "study.csv").read_text().splitlines()
        raw = [";".join([a, b, d]) for a, b, _, d in (line.split(";") for line in lines)]
        (project / "raw.csv").write_text("\n".join(raw))
        refused = cli(*command)
        assert refused.returncode == 2
        assert "--images DIR" in refused.stderr
    drawn = cli("dataset", "split", f"csv:{project / 'raw.csv'}", "--images", share)
    assert drawn.returncode == 0, drawn.stderr
    assert f"csv:{project / 'raw-split.csv'} --images {share}" in drawn.stdout


def test_two_datasets_of_one_name_are_both_named(cli: Cli, project: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "share/x", project / "x")
    second = shutil.copytree(project, tmp_path / "second")
    sources = [f"csv:{folder / 'study.csv'}" for folder in (project, second)]
    refused = cli("run", "--datasets", ",".join(sources), *RUN, "--out", tmp_path / "out")
    assert refused.returncode == 2
    for part in (*sources, "'study'", "rename"):
        assert part in refused.stderr
