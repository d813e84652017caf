"""Models that Python gives, loaded, as folders that the ordinary names load again.

A model of open_clip becomes what `openclip:local-dir:FOLDER` reads, one of transformers what
`transformers:FOLDER` does. What is loaded from there is compared with what was given, so that a
model, transform or tokenizer that its objects do not describe is refused.
"""

from __future__ import annotations

import copy
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from vipbench.api import Backbone, TextError
from vipbench.backbones.loading import given_openclip
from vipbench.backbones.loading.openclip import load_openclip
from vipbench.backbones.loading.transformers import PAIRS, load_transformers
from vipbench.backbones.towers.clip import digest_weights
from vipbench.errors import UsageError
from vipbench.files import make_folder, write

# How far a feature of unit length may be from the model's own; see docs/backbones.md.
MOST_DIFFERENCE = 1e-5
_TEXTS = ("nevus", "a photo of a nevus.", "Naïve X-RAY, 12.5 mm;  Clark's")


@dataclass(frozen=True)
class _Form:
    """One way to keep a model. settings: file -> what may be in it, the likeliest first. save:
    writes the weights into a folder. load: the backbone in a folder. pixels: the given transform,
    None where the library's own counts. images, texts: the model's own features."""

    source: str
    settings: Mapping[str, Sequence[bytes]]
    save: Callable[[Path], None]
    load: Callable[[Path], Backbone]
    pixels: Callable[[Image.Image], Any] | None
    images: Callable[[Tensor], Tensor]
    texts: Callable[[list[str]], Tensor]


def keep_model(name: str, given: Sequence[Any], folder: Path) -> str:
    """The source that loads the model from now on; its files lie in `folder`, by digest.

    given: (model, preprocess, tokenizer) of open_clip, or (model, processor) of transformers.
    Raises UsageError naming what is not understood.
    """
    where = f"backbone '{name}'"
    model = _unwrapped(given[0], where)
    try:
        model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"{where}: the model cannot be copied ({str(error).splitlines()[0]}); save its weights "
            "and give their name, such as openclip:ARCH+quickgelu@FILE"
        ) from error
    make_folder(folder)
    stage = folder / f".{secrets.token_hex(8)}.part"
    stage.mkdir()
    try:
        of_transformers = hasattr(model, "save_pretrained") and hasattr(model, "config")
        form = (_of_transformers if of_transformers else _of_openclip)(
            where, model, given[1:], stage
        )
        digest = hashlib.sha256(digest_weights(model).encode())
        digest.update(repr(sorted(form.settings.items())).encode())
        for path in sorted(p for p in stage.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(stage)} ".encode() + path.read_bytes())
        target = folder / digest.hexdigest()[:24]
        if not target.is_dir():
            form.save(stage)
            _settle(where, form, stage)
            stage.rename(target)
        return f"{form.source}{target}"
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _unwrapped(model: Any, where: str) -> Any:
    """The module itself. Raises UsageError."""
    for name in ("_orig_mod", "module"):
        model = getattr(model, name, model)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{where}: the first of the tuple is a {type(model).__name__}; expected the model, as "
            "in (model, preprocess, tokenizer)"
        )
    if hasattr(model, "merge_and_unload"):
        raise UsageError(f"{where}: it has adapters of peft; give model.merge_and_unload()")
    return model


def _settle(where: str, form: _Form, folder: Path) -> None:
    """Write the settings with which the model that is loaded is the one that was given."""
    reasons: list[str] = []
    for file, choices in form.settings.items():
        for content in choices:
            write(folder / file, content)
            try:
                reason = _difference(form, form.load(folder))
            except (UsageError, RuntimeError, ValueError, TypeError) as error:
                reason = str(error).replace(str(folder), "FOLDER")
            if not reason:
                return
            reasons.append(reason)
    raise UsageError(
        f"{where} cannot be kept so that others load the same: {reasons[0] if reasons else ''}. "
        "Save its weights yourself and give their name: openclip:ARCH+quickgelu@FILE, "
        "openclip:ARCH+gelu@FILE, openclip:local-dir:FOLDER or transformers:FOLDER"
    )


@torch.no_grad()
def _difference(form: _Form, backbone: Backbone) -> str:
    """What of the loaded backbone is not as it was given, "" where nothing is."""
    rng, side = np.random.default_rng(0), backbone.image_size
    sizes = ((side, side), (2 * side + 3, side + 1), (side + 5, 3 * side))
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in sizes
    ]
    pixels = torch.stack([backbone.preprocess(image) for image in images])
    if form.pixels is not None:
        for image, mine in zip(images, pixels, strict=True):
            theirs = torch.as_tensor(form.pixels(image))
            if theirs.shape != mine.shape:
                return (
                    f"its preprocess turns an image into {tuple(theirs.shape)}, and the model "
                    f"takes {tuple(mine.shape)}"
                )
            if (far := float((theirs.float() - mine).abs().max())) > MOST_DIFFERENCE:
                return f"its preprocess gives pixels that differ by {far:.2g} from its settings"
    if far := _far(backbone.encode_image(pixels), form.images(pixels)):
        return f"features of images differ by {far:.2g} from the model's own"
    compared = 0
    for text in _TEXTS:
        try:
            prompts = backbone.embed([text])
        except TextError:
            continue  # too long for this model
        compared += 1
        if far := _far(backbone.encode_text(prompts), form.texts([text])):
            return f"features of texts differ by {far:.2g} from the model's own ('{text}')"
    return "" if compared else "its text tower is too short for a class name"


def _far(mine: Tensor, theirs: Any) -> float:
    """The largest difference of features of unit length, 0 where it is small enough."""
    theirs = getattr(theirs, "pooler_output", theirs)
    a, b = (nn.functional.normalize(x.float(), dim=-1) for x in (mine, theirs))
    far = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
    return 0.0 if far <= MOST_DIFFERENCE else far


def _of_openclip(where: str, model: Any, rest: Sequence[Any], stage: Path) -> _Form:
    if len(rest) != 2:
        raise UsageError(
            f"{where}: a model of open_clip comes as (model, preprocess, tokenizer), got "
            f"{len(rest) + 1} values"
        )
    preprocess, tokenizer = rest
    if hasattr(tokenizer, "transforms"):
        raise UsageError(
            f"{where}: the third of the tuple is a transform; expected the tokenizer, from "
            "open_clip.get_tokenizer(...), and as second the last that "
            "open_clip.create_model_and_transforms(...) gives"
        )
    stated = given_openclip.preprocess_of(preprocess, where)
    texts = given_openclip.save_tokenizer(tokenizer, stage, where)
    configs = given_openclip.configs_of(model, texts, stage)
    files = [
        json.dumps({"model_cfg": config, "preprocess_cfg": stated}, indent=1).encode()
        for config in configs
    ]
    if not files:
        raise UsageError(
            f"{where}: no architecture of open_clip has the weights of this "
            f"{type(model).__name__}; save them and name it: openclip:ARCH+quickgelu@FILE or "
            "openclip:ARCH+gelu@FILE"
        )

    def save(folder: Path) -> None:
        weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")

    return _Form(
        "openclip:local-dir:",
        {"open_clip_config.json": files},
        save,
        lambda folder: load_openclip(f"local-dir:{folder}"),
        preprocess,
        model.encode_image,
        lambda lines: model.encode_text(tokenizer(lines)),
    )


def _of_transformers(where: str, model: Any, rest: Sequence[Any], stage: Path) -> _Form:
    kind = str(model.config.model_type)
    if kind not in PAIRS:
        raise UsageError(
            f"{where} is a model of type '{kind}' ({type(model).__name__}); known are "
            f"{', '.join(PAIRS)}"
        )
    if not 1 <= len(rest) <= 2 or not all(hasattr(part, "save_pretrained") for part in rest):
        shown = ", ".join(type(part).__name__ for part in rest)
        raise UsageError(
            f"{where}: a model of transformers comes as (model, processor) or (model, "
            f"image_processor, tokenizer), got ({shown}) beside it"
        )
    for part in rest:
        part.save_pretrained(stage)
    words = next((getattr(p, "tokenizer", p) for p in rest if _cuts_texts(p)), None)
    if words is None:
        raise UsageError(f"{where}: no tokenizer was given with the model")
    padding = "max_length" if kind in ("siglip", "siglip2") else True
    lower = kind in ("siglip", "siglip2")

    def texts(lines: list[str]) -> Tensor:
        lines = [line.lower() for line in lines] if lower else lines
        made = words(lines, padding=padding, truncation=True, return_tensors="pt")
        inputs = {k: v for k, v in made.items() if k in ("input_ids", "attention_mask")}
        if lower:
            inputs.pop("attention_mask", None)
        found: Tensor = model.get_text_features(**inputs)
        return found

    def images(pixels: Tensor) -> Tensor:
        found: Tensor = model.get_image_features(pixel_values=pixels)
        return found

    def save(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size="1000GB")

    config = model.config.to_json_string(use_diff=False).encode()
    given = json.dumps({"config_sha256": hashlib.sha256(config).hexdigest()}).encode()
    return _Form(
        "transformers:",
        {"given.json": [given]},
        save,
        lambda folder: load_transformers(str(folder)),
        None,
        images,
        texts,
    )


def _cuts_texts(part: Any) -> bool:
    return hasattr(part, "tokenizer") or hasattr(part, "get_vocab")
