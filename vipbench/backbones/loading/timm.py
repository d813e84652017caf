"""From the text behind `timm:` to an image backbone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from vipbench.api import ImageBackbone, Tap
from vipbench.backbones.loading import hub as _hub
from vipbench.backbones.loading.weights import read_weights
from vipbench.backbones.towers.clip import digest_weights
from vipbench.backbones.towers.image import side_of_timm
from vipbench.backbones.towers.preprocess import TimmTransform
from vipbench.errors import UsageError, unknown
from vipbench.fetching import HubFile, Needed

_RANDOM = "+random"


class TimmBackbone(ImageBackbone):
    """A timm model without its classifier, frozen.

    model: gives features (B,D). data: timm's data configuration. facts: what else made it.
    """

    def __init__(
        self, model: Any, *, name: str, data: Mapping[str, Any], licence: str, fresh: Any
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        size = int(data["input_size"][-1])
        made = timm.data.create_transform(**data, is_training=False)
        self._transform = TimmTransform(made)
        self._images = side_of_timm(model, None, size, model, fresh)
        self.name, self.licence = name, licence
        self.dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.image_size = size
        self.vision_width, self.vision_layers = self._images.width, len(self._images.layers)
        self.weights_sha256 = digest_weights(model)
        facts: dict[str, Any] = {"class": type(model).__name__, "data": data}
        facts["weights"] = self.weights_sha256
        facts["revision"] = 3  # of the transform
        text = json.dumps(facts, sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the tower lives."""
        return next(self._model.parameters()).device  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> None:
        """Move the tower."""
        self._model.to(device)

    def preprocess(self, image: Image.Image) -> Tensor:
        """timm's evaluation transform: RGB image -> (3,H,H) float32."""
        return self._transform(image)

    def preprocess_alone(self) -> TimmTransform:
        """See `ImageBackbone.preprocess_alone`."""
        return self._transform

    def encode_image(self, pixels: Tensor, tap: Tap | None = None) -> Tensor:
        """(B,3,H,H) -> (B,D). Raises UnsupportedError for a tap where the tower is not a plain
        vision transformer."""
        return self._images(pixels, tap)

    def trainable_copy(self, pretrained: bool = True) -> nn.Module:
        """See `ImageBackbone.trainable_copy`; new weights come from torch's global generator: fork
        and seed that around the call."""
        return self._images.trainable_copy(pretrained, self.device)


def load_timm(argument: str) -> TimmBackbone:
    """The backbone `timm:argument`.

    Raises UsageError for an unknown name or tag, before any weights are needed; for weights that
    cannot be had; and for a checkpoint that is refused or does not fit.
    """
    named, at, given = argument.partition("@")
    random = named.endswith(_RANDOM)
    named = named.removesuffix(_RANDOM)
    arch, _, tag = named.partition(".")
    _check_name(arch, tag)
    if at and not given:
        raise UsageError(f"timm:{argument} has no file after '@'")
    if at and random:
        raise UsageError(f"timm:{argument} asks both for random weights and for a file; give one")
    fresh = partial(timm.create_model, named, pretrained=False, num_classes=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = fresh()
    data = timm.data.resolve_model_data_config(model)
    if data["input_size"][1] != data["input_size"][2] or data["input_size"][0] != 3:
        raise UsageError(f"timm:{argument} takes images of {data['input_size']}; expected squares")
    licence = "unknown"
    if not random:
        config = model.pretrained_cfg
        path = Path(given).expanduser() if at else _weights(named, config).ensure()
        _load(model, read_weights(path), config, f"timm:{argument}")
        licence = "unknown" if at else str(config.get("license") or "see its model card")
    name = f"timm:{named}{_RANDOM if random else ''}"
    backbone = TimmBackbone(model, name=name, data=data, licence=licence, fresh=fresh)
    if at:
        # Tables tell local checkpoints apart by content, and never show a path.
        backbone.name = f"{name}@{backbone.weights_sha256[:8]}"
    return backbone


def timm_files(argument: str) -> Iterator[Needed]:
    """The weights that `load_timm` needs and that are not the user's own. Raises UsageError."""
    named, at, _ = argument.partition("@")
    if at or named.endswith(_RANDOM):
        return
    arch, _, tag = named.partition(".")
    _check_name(arch, tag)
    config: Any = timm.get_pretrained_cfg(named)
    yield _weights(named, config.to_dict())


def _weights(named: str, config: Mapping[str, Any]) -> HubFile:
    repo = config.get("hf_hub_id")
    if not repo:
        raise UsageError(
            f"timm has no weights for '{named}' on the Hub; give a file, timm:{named}@PATH, or "
            f"timm:{named}{_RANDOM} to train it from scratch"
        )
    hint = _hub.bring(
        f"timm:{named}",
        f"{repo} model.safetensors",
        f"or give the file itself: timm:{named}@PATH; or timm:{named}{_RANDOM} to train it from "
        "scratch",
    )
    licence = str(config.get("license") or "see its model card")
    return HubFile(str(repo), ("model.safetensors",), licence=licence, bring=hint)


def _check_name(arch: str, tag: str) -> None:
    if not timm.is_model(arch):
        raise unknown("timm model", arch, timm.list_models(), "`timm.list_models()` lists them.")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        raise unknown(f"tag of timm's {arch}", tag, tags)


def _load(model: Any, weights: dict[str, Tensor], config: Mapping[str, Any], source: str) -> None:
    """Put `weights` into `model`, but for a classifier. Raises UsageError where they do not fit."""
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = model.state_dict()
    weights = {
        name: value
        for name, value in weights.items()
        if name in own or not any(name.startswith(f"{head}.") for head in heads)
    }
    missing = [name for name in own if name not in weights]
    strange = [name for name in weights if name not in own]
    misfit = [n for n, v in weights.items() if n in own and v.shape != own[n].shape]
    if missing or strange or misfit:
        counts = (("missing", missing), ("not in the model", strange), ("of another shape", misfit))
        misfits = "; ".join(f"{len(n)} {what} ({', '.join(n[:3])})" for what, n in counts if n)
        raise UsageError(f"the weights of {source} do not fit: {misfits}")
    bad = [n for n, v in weights.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        raise UsageError(f"the weights of {source} hold NaN or infinity ({', '.join(bad[:3])})")
    model.load_state_dict(weights)
