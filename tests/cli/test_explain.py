"""From a run to its explanation, its prompt files, and what they say elsewhere."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from vipbench.cli import main

Cli = Callable[..., "CompletedProcess[str]"]


class Told(NamedTuple):
    """What a command said and how it ended."""

    status: int
    out: str
    err: str


Say = Callable[..., Told]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """The command line in this process, which has imported torch once."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: object) -> Told:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Told(ended.value.code, out, err)

    return call


@pytest.fixture(scope="module")
def data(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data with two test images under the wrong label: nobody gets these right."""
    arrays = dict(np.load(toy / "toy.npz"))
    arrays["test_labels"][:2] = 1 - arrays["test_labels"][:2]
    folder = tmp_path_factory.mktemp("mixed")
    np.savez(folder / "mixed.npz", **arrays)
    (folder / "mixed.yaml").write_text("class_names: [dark, bright]\n")
    return folder / "mixed.npz"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three methods on data whose licence is unknown."""
    folder = tmp_path_factory.mktemp("explain")
    symptoms = folder / "s.json"
    symptoms.write_text(
        json.dumps({"dark": ["a black <b>field</b>", "low light"], "bright": ["a white field"]})
    )
    with pytest.raises(SystemExit) as ended:
        main([
            "run", "--methods",
            "vip[epochs=2],vip[merge=mean,epochs=2],coop[epochs=2],taskres[epochs=2],tip-adapter",
            "--datasets", f"npz:{data}", "--backbones", "tiny-clip", "--shots", "2",
            "--seeds", "1", "--views", "none", "--symptoms", str(symptoms), "--out",
            str(folder / "run"),
        ])  # fmt: skip
    assert ended.value.code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def prompts(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A row's label, without the epochs -> its prompt file."""
    out = tmp_path_factory.mktemp("prompts")
    with pytest.raises(SystemExit) as ended:
        main(["prompts", str(run), "-o", str(out)])
    assert ended.value.code == 0
    found = {}
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            row = json.loads(file.metadata()["vipbench"])["row"]
        found[row.replace("[epochs=2]", "").replace(",epochs=2", "")] = path
    return found


def test_a_page_loads_runs_and_shows_nothing_it_may_not(
    say: Say, run: Path, tmp_path: Path
) -> None:
    page = tmp_path / "p.html"
    done = say("explain", run, "--errors", "2", "-o", page)
    assert done.status == 0, done.err
    assert "licence" in done.err
    text = page.read_text()
    assert text.count("<div class=case>") == 2
    assert text.count("not embedded") == 2
    assert "data:image" not in text
    assert "<b>field" not in text
    assert "&lt;b&gt;field" in text
    for word in ("<script", "http:", "https:", "<link", "url("):
        assert word not in text
    assert "default-src 'none'" in text
    assert "seldom" in text
    assert " 148 tokens " in text
    assert "clinical" in text
    decided = re.findall(r"<tr><td>(dark|bright)<td>.*?<td class=n>(\d+)<td class=n>\d+</tr>", text)
    counts = [int(count) for name, count in decided if name == "dark"]
    assert len(counts) == 2
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1]
    # The user sees which images these are; whom the page is given to does not.
    assert "i-" in done.out
    assert "(test/" in done.out
    assert "test/" not in text
    done = say("explain", run, "--errors", "2", "-o", page, "--include-paths")
    assert "test/" in page.read_text()


def test_features_of_single_images_are_handed_on_by_flag_alone(
    say: Say, run: Path, tmp_path: Path
) -> None:
    done = say("prompts", run, "-o", tmp_path / "some")
    assert done.status == 0, done.err
    assert ": tip-adapter" in done.err
    assert not list((tmp_path / "some").glob("tip-adapter*"))
    done = say("prompts", run, "-o", tmp_path / "all", "--patient-data")
    assert done.status == 0, done.err
    (card,) = (tmp_path / "all").glob("tip-adapter*.md")
    assert "contains-patient-data" in card.read_text()
    (other,) = (tmp_path / "all").glob("coop*.md")
    assert "contains-patient-data" not in other.read_text()


def test_prompt_files_read_pixels_as_their_dataset_does(say: Say, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "twelve"
    for split, count in (("train", 2), ("val", 1), ("test", 2)):
        for label, level in (("dark", 600), ("bright", 3000)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                values = (rng.integers(0, 900, (32, 32)) + level).astype(np.uint16)
                Image.fromarray(values).save(folder / split / label / f"{i}.png")
    (folder / "card.yaml").write_text("bits: 12\n")
    out = tmp_path / "R"
    done = say("run", "--backbones", "tiny-clip", "--methods", "linear-probe", "--shots", "2",
               "--seeds", "1", "--views", "none", "--validation", "none",
               "--datasets", f"folder:{folder}", "--out", out)  # fmt: skip
    assert done.status == 0, done.err
    say("prompts", out, "-o", tmp_path / "prompts", "--patient-data")
    [prompt] = (tmp_path / "prompts").glob("*.safetensors")
    deep, shallow = folder / "test/bright/0.png", tmp_path / "eight.png"
    values = np.asarray(Image.open(deep)).astype(int)
    Image.fromarray(((values * 510 + 4095) // 8190).astype(np.uint8)).save(shallow)
    lines = say("predict", prompt, deep, shallow).out.splitlines()[1:3]
    one, other = (line.split()[1:] for line in lines)
    assert one == other
    assert one[0] == "bright"
    Image.fromarray(values.astype(np.uint16) + 4000).save(deep)
    done = say("predict", prompt, deep)
    assert done.status == 2
    assert re.search("0 to 4095.*bits", done.err)


def test_prompts_and_bundles_agree_on_what_may_be_handed_on(
    say: Say, run: Path, data: Path, tmp_path: Path
) -> None:
    def names(folder: Path, number: int) -> tuple[set[str], set[str], bool]:
        prompts, bundle = tmp_path / f"prompts{number}", tmp_path / f"{number}.zip"
        assert say("prompts", folder, "-o", prompts).status == 0
        done = say("export", folder, "--bundle", "--parameters", "-o", bundle)
        assert done.status == 0, done.err
        with zipfile.ZipFile(bundle) as archive:
            inside = [name for name in archive.namelist() if name.startswith("parameters/")]
            manifest = json.loads(archive.read("manifest.json"))
        assert manifest["contains_patient_data"] is False
        rows = csv.DictReader((prompts / "index.csv").read_text().splitlines())
        keys = {row["file"]: row["key"] for row in rows}
        assert set(keys) == {path.name for path in prompts.glob("*.safetensors")}
        files = set(keys.values())
        assert files == {Path(name).stem for name in inside}
        noted = "may hold features of single images" in done.out
        return files, {of["sharing"] for of in manifest["datasets"].values()}, noted

    local, sharing, noted = names(run, 1)
    assert (sharing, noted) == ({"local"}, True)
    # The same run on the same data, whose card now says that they may be shared.
    shared = shutil.copytree(data.parent, tmp_path / "shared")
    with (shared / "mixed.yaml").open("a") as file:
        file.write("sharing: allowed\n")
    again = shutil.copytree(run, tmp_path / "again")
    suite = (again / "suite.yaml").read_text()
    (again / "suite.yaml").write_text(suite.replace(str(data), str(shared / data.name)))
    public, sharing, noted = names(again, 2)
    assert (sharing, noted) == ({"allowed"}, False)
    assert local < public


def test_own_images_are_shown_where_they_are_asked_for(say: Say, run: Path, tmp_path: Path) -> None:
    names = [f"smith_john_{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((28, 28), 40 + 95 * i, np.uint8)).save(tmp_path / name)
    page = tmp_path / "own.html"
    files = [tmp_path / name for name in names]
    done = say("explain", run, "-o", page, "--embed-images", "--images", *files)
    assert done.status == 0, done.err
    text = page.read_text()
    shown = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert sorted(
        int(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean()) for data in shown
    ) == [40, 135, 230]
    assert "smith" not in text
    assert "contains-patient-data" in text
    assert "Images: " in text
    assert [f"image {i} ({name})" in done.out for i, name in enumerate(names, 1)] == [True] * 3
    done = say("explain", run, "-o", page, "--images", tmp_path / "none.png")
    assert done.status == 2
    assert "none.png" in done.err


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_figures(say: Say, run: Path, tmp_path: Path, suffix: str) -> None:
    own = []
    for level in (10, 120, 240):
        own.append(tmp_path / f"{level}.jpg")
        Image.fromarray(np.full((20, 30), level, np.uint8)).save(own[-1])
    files = []
    for name in "ab":
        out = tmp_path / f"{name}{suffix}"
        done = say("explain", run, "-o", out, "--embed-images", "--images", *own)
        assert done.status == 0, done.err
        files.append(out.read_bytes())
    assert files[0] == files[1]  # no date, user or path in it
    if suffix == ".png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.width == 1500
            assert image.height > 1200  # three images below each other
            assert set(image.info) <= {"Software", "dpi"}
    else:
        assert len(re.findall(rb"/Type /Page\b", files[0])) == 3
        assert b"/Subtype /Type3" not in files[0]
    assert not list(tmp_path.glob("*.part"))
    none = tmp_path / f"none{suffix}"
    done = say("explain", run, "--errors", "0", "-o", none)
    assert done.status == 0, done.err
    assert none.read_bytes()[:4] == files[0][:4]


def test_what_explain_refuses(say: Say, run: Path, tmp_path: Path) -> None:
    for words, expected in (
        (("-o", tmp_path / "x.svg"), ".html, .png"),
        (("--cell", "ffff", "-o", tmp_path / "x.html"), "'ffff'"),
        (("surplus.png",), "surplus.png"),
    ):
        done = say("explain", run, *words)
        assert done.status == 2
        assert expected in done.err
    assert not list(tmp_path.iterdir())


def test_a_prompt_file_says_what_it_is_and_scores_alike(
    say: Say, prompts: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    with safe_open(prompts["vip"], framework="np") as file:
        card = json.loads(file.metadata()["vipbench"])
        assert "context" in file.keys()  # noqa: SIM118
    assert card["class_names"] == ["dark", "bright"]
    assert "clinical" in prompts["vip"].with_suffix(".md").read_text()
    done = say("evaluate", prompts["vip"], "--dataset", f"npz:{data}")
    assert done.status == 0, done.err
    assert f"accuracy: {card['test_accuracy']:.4f}" in done.out
    assert "cross-dataset" in done.out
    Image.fromarray(np.full((28, 28), 230, np.uint8)).save(tmp_path / "own.png")
    done = say("predict", prompts["vip"], tmp_path / "own.png")
    assert "clinical" in done.out
    assert "own.png" in done.out
    (tmp_path / "more").mkdir()
    Image.fromarray(np.full((28, 28), 5, np.uint8)).save(tmp_path / "more" / "dark.png")
    for out in (tmp_path / "scores.csv", tmp_path / "scores.json"):
        done = say("predict", prompts["vip"], tmp_path, "-o", out)
        assert done.status == 0, done.err
        assert "2 images" in done.out
    listed = [*csv.DictReader((tmp_path / "scores.csv").read_text().splitlines())]
    kept = json.loads((tmp_path / "scores.json").read_text())
    for line, one in zip(listed, kept, strict=True):
        scores = {name: float(line[name]) for name in ("dark", "bright")}
        assert line["image"] == one["image"]
        assert max(scores, key=lambda name: scores[name]) == line["predicted"] == one["predicted"]
        assert one["scores"] == scores
    done = say("predict", prompts["vip"], tmp_path, "-o", tmp_path / "own.png")
    assert done.status == 2
    assert ".json" in done.err
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    done = say("predict", bad, tmp_path / "own.png")
    assert done.status == 2
    assert "bad.safetensors" in done.err


def test_a_prompt_file_on_other_classes(
    say: Say, prompts: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(data))
    np.savez(tmp_path / "other.npz", **arrays)
    (tmp_path / "other.yaml").write_text("class_names: [night, day]\n")
    other = f"npz:{tmp_path / 'other.npz'}"
    # The same images under other names: what the names say decides.
    done = say("evaluate", prompts["coop"], "--dataset", other)
    assert done.status == 0, done.err
    assert "other (10 test images)" in done.out
    assert "differ" in done.out
    context = load_file(prompts["coop"])["context"]
    assert f"accuracy: {by_hand(context, ['night', 'day'], arrays):.4f}" in done.out
    # ViP reads symptoms, which these data lack; with some it can be asked.
    mean = prompts["vip[merge=mean]"]
    done = say("evaluate", mean, "--dataset", other)
    assert done.status == 2
    assert re.search("'vip'.*symptoms", done.err)
    texts = tmp_path / "other.json"
    texts.write_text(json.dumps({"night": ["no light"], "day": ["much light", "a pale sky"]}))
    done = say("evaluate", mean, "--dataset", other, "--symptoms", texts)
    assert done.status == 0, done.err
    # What belongs to the classes is never put on others, though its shape would fit.
    for row, learned in (("taskres", "residual"), ("vip", "query")):
        done = say("evaluate", prompts[row], "--dataset", other, "--symptoms", texts)
        assert done.status == 2
        assert "(dark, bright)" in done.err
        assert f"'{learned}'" in done.err


def by_hand(context: np.ndarray, names: list[str], arrays: dict[str, np.ndarray]) -> float:
    """CoOp's accuracy on the test images, from its context and the class names alone."""
    import torch
    import torch.nn.functional as F

    from vipbench.backbones.open_clip import tiny_clip

    towers = tiny_clip(None)
    with torch.no_grad():
        texts = towers.encode_text(
            towers.embed([("", f"{name}.") for name in names]), torch.from_numpy(context)
        )
        images = torch.stack(
            [towers.preprocess(Image.fromarray(image)) for image in arrays["test_images"]]
        )
        cosines = F.normalize(towers.encode_image(images), dim=-1) @ F.normalize(texts, dim=-1).T
    return float((cosines.argmax(1).numpy() == arrays["test_labels"].ravel()).mean())
