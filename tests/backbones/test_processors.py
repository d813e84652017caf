"""A folder's image processor does what the library does with its file, or is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from tests.backbones import hub_models
from tests.backbones.clips import class_folder, pictures
from tests.backbones.test_transformers import CLASS_TEXTS
from tests.conftest import REPO, Cli
from vipbench.api import Views
from vipbench.engine.features.views import training_view
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry

SQUARE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of few tokens, so that it loads at once."""
    folder = tmp_path_factory.mktemp("processors")
    tokenizer = hub_models.save_words(folder, start="<s>", end="</s>", pad="[PAD]", length=30)
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 40,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
        },
        projection_dim=24,
    )  # fmt: skip
    hub_models.randomise(transformers.CLIPModel(config)).save_pretrained(folder)
    return folder


def state(folder: Path, **changes: Any) -> None:
    stated = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
        "crop_size": SQUARE, "do_center_crop": True, "resample": 3,
        "image_mean": hub_models.CLIP_MEAN, "image_std": hub_models.CLIP_STD,
    }  # fmt: skip
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({k: v for k, v in {**stated, **changes}.items() if v is not None}))


OBEYED: dict[str, dict[str, Any]] = {
    "squash": {"size": SQUARE},
    "squash without a crop": {"size": SQUARE, "do_center_crop": False},
    "no rescaling": {"do_rescale": False},
    "another factor": {"rescale_factor": 1 / 127.5},
    "no resizing": {"do_resize": False},
    "not normalised": {"do_normalize": False},
    "RGB or not": {"do_convert_rgb": False},
    "a resize larger than the crop": {"size": {"shortest_edge": 36}},
    "a resize smaller than the crop": {"size": {"shortest_edge": 24}},
    "a resize to another aspect ratio": {"size": {"height": 40, "width": 36}},
    "a resize whose share is cut out": {
        "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "crop_size": None,
        "do_center_crop": None,
    },
    "bilinear": {"resample": 2},
    "Lanczos": {"resample": 1},
    "numbers for sizes": {"size": 32, "crop_size": 32},
    "as old files name it": {
        "image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"
    },
    "SigLIP's": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE,
                 "do_center_crop": None, "crop_size": None},
    "nothing but its kind": {
        "size": {"shortest_edge": 32}, "resample": None, "image_mean": None, "image_std": None
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OBEYED)
@torch.no_grad()
def test_what_the_file_states_is_done(kind: str, folder: Path) -> None:
    state(folder)
    usual = load_registry().backbone(f"transformers:{folder}")[0].fingerprint
    state(folder, **OBEYED[kind])
    backbone: Any = load_registry().backbone(f"transformers:{folder}")[0]
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs = processor(images=pictures(), return_tensors="pt").pixel_values
    ours = torch.stack([backbone.preprocess(image) for image in pictures()])
    assert torch.equal(ours, theirs)
    model = transformers.AutoModel.from_pretrained(folder)
    torch.testing.assert_close(
        backbone.encode_image(ours), model.get_image_features(theirs).pooler_output,
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    view = training_view(pictures()[0], 32, Views(), (1,))
    alone = processor.to_dict() | {"do_resize": False, "do_center_crop": False}
    expected = type(processor)(**alone)(images=view, return_tensors="pt").pixel_values[0]
    assert torch.equal(backbone.preprocess(view), expected)
    same = ("numbers for sizes", "as old files name it", "nothing but its kind")
    assert (backbone.fingerprint == usual) == (kind in same)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (
            {"crop_size": {"height": 16, "width": 16}},
            r"\(3, 16, 16\).*\(3, 32, 32",
        ),
        ({"do_resize": False, "do_center_crop": False}, r"\(3, 67, 33\).*do_resize False"),
        ({"do_center_crop": False}, r"\(3, 64, 32\).*do_center_crop False"),
        ({"image_std": [0, 1, 1]}, r"finite \(image_std [\[(]0, 1, 1"),
        ({"size": {"edge": 3}}, "loaded|RGB"),
        ({"image_processor_type": "NoSuchImageProcessor"}, "processor .*loaded"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: Any, facts: str, folder: Path) -> None:
    state(folder, **changes)
    with pytest.raises(UsageError, match=facts):
        load_registry().backbone(f"transformers:{folder}")


def test_a_processor_inside_the_whole_models_file(folder: Path) -> None:
    state(folder, size=SQUARE)
    path = folder / "preprocessor_config.json"
    expected = load_registry().backbone(f"transformers:{folder}")[0].preprocess(pictures()[0])
    whole = folder / "processor_config.json"
    whole.write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    try:
        backbone, _ = load_registry().backbone(f"transformers:{folder}")
        assert torch.equal(backbone.preprocess(pictures()[0]), expected)
    finally:
        whole.unlink()
    # A CLIP without either gets the library's defaults at its own size.
    state(folder)
    stated, _ = load_registry().backbone(f"transformers:{folder}")
    path.unlink()
    unstated, _ = load_registry().backbone(f"transformers:{folder}")
    assert torch.equal(unstated.preprocess(pictures()[0]), stated.preprocess(pictures()[0]))


def test_state_dicts_and_shards(folder: Path, tmp_path: Path) -> None:
    state(folder)
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    expected, _ = load_registry().backbone(f"transformers:{folder}")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()

    def check() -> None:
        backbone, _ = load_registry().backbone(f"transformers:{tmp_path}")
        assert backbone.fingerprint == expected.fingerprint

    for content in (
        weights,
        {"epoch": 3, "model_state_dict": {f"module._orig_mod.{k}": v for k, v in weights.items()}},
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        check()
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(weights)
    halves = {"a.bin": names[::2], "b.bin": names[1::2]}
    for name, some in halves.items():
        torch.save({k: weights[k] for k in some}, tmp_path / name)
    index = {"weight_map": {k: name for name, some in halves.items() for k in some}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check()


@torch.no_grad()
def test_siglip_2_at_a_fixed_resolution_reads_lowercase(tmp_path: Path) -> None:
    """Its repositories are of type "siglip" and name Gemma's tokenizer, which keeps capitals."""
    model = hub_models.save_siglip(tmp_path)
    (tmp_path / "spiece.model").unlink()
    hub_models.save_gemma_like(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for name in ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast"):
        path.write_text(json.dumps({**config, "tokenizer_class": name}))
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        backbone: Any = load_registry().backbone(f"transformers:{tmp_path}")[0]
        lower = [text.lower() for text in CLASS_TEXTS]
        tokens = tokenizer(lower, padding="max_length", max_length=32, return_tensors="pt")
        theirs = model.get_text_features(input_ids=tokens.input_ids).pooler_output
        for texts in (CLASS_TEXTS, lower):
            ours = backbone.encode_text(backbone.embed(texts))
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


OLD = """
from vipbench.backbones.loading import transformers

# What read the file before: the size that the crop has, whatever the file states.
current = transformers.read_preprocess


def before(folder, kind, size, where, remote):
    found = current(folder, kind, size, where, remote)
    return {"mean": found.facts["image_mean"], "std": found.facts["image_std"]}


transformers.read_preprocess = before
transformers.PREPROCESS_REVISION = 1
"""


def test_an_old_results_folder_with_its_cache_runs_again(
    folder: Path, cli: Cli, tmp_path: Path
) -> None:
    state(folder, size=SQUARE)
    (tmp_path / "old").mkdir()
    # Imported by every process at its start; a plugin has no say in built-in cells.
    (tmp_path / "old" / "sitecustomize.py").write_text(OLD)
    data = class_folder(tmp_path / "data", "nevus", "melanoma")

    def run(out: str, *more: str, cache: str = "cache", old: bool = False) -> str:
        path = {"PYTHONPATH": os.pathsep.join((str(tmp_path / "old"), str(REPO)))} if old else {}
        done = cli(
            *("run", "--backbones", f"transformers:{folder}", "--datasets", f"folder:{data}"),
            *("--methods", "zero-shot", "--out", tmp_path / out, *more),
            env={"VIPBENCH_CACHE": str(tmp_path / cache), **path},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def scores(out: str) -> Any:
        done = cli("export", tmp_path / out, "-o", tmp_path / f"{out}.jsonl", "--include-paths")
        assert done.returncode == 0, done.stderr
        (line,) = (tmp_path / f"{out}.jsonl").read_text().splitlines()
        return json.loads(line)["scores"]

    run("out", old=True)
    before = scores("out")
    assert "tokenizer" in run("out", "--dry-run")
    run("out")
    run("fresh", cache="fresh")
    assert scores("out") == scores("fresh") != before


OWN = """
from transformers import CLIPImageProcessorPil


class OwnProcessor(CLIPImageProcessorPil):
    def preprocess(self, images, do_resize=None, do_center_crop=None, **kwargs):
        return super().preprocess(images, do_resize=True, do_center_crop=True, **kwargs)
"""


def test_a_processor_that_moves_the_pixels_of_views_is_refused(folder: Path) -> None:
    own = folder / "own.py"
    own.write_text(OWN)
    files = {"auto_map": {"AutoImageProcessor": "own.OwnProcessor"}}
    try:
        state(folder, **files)
        load_registry().backbone(f"transformers:{folder}+remote-code")
        state(folder, **files, size={"shortest_edge": 36})
        with pytest.raises(UsageError, match=r"edge': 36"):
            load_registry().backbone(f"transformers:{folder}+remote-code")
    finally:
        own.unlink()
