"""LoRA adapters of the peft library, put into the weights of their base model.

Source: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rank-stabilised scale), Liu et al. 2024 (DoRA);
names and files as peft writes them. What is not applied exactly is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vipbench.backbones.loading.weights import read_json, read_weights
from vipbench.errors import UsageError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
# Settings that are obeyed below, or that say how an adapter was trained and do not matter after.
_KNOWN = frozenset(
    (
        "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying "
        "eva_config exclude_modules inference_mode init_lora_weights layers_pattern "
        "layers_to_transform lora_alpha lora_dropout megatron_core modules_to_save peft_type "
        "peft_version qalora_group_size r rank_pattern revision runtime_config target_modules "
        "task_type use_dora use_rslora"
    ).split()
)
# Others of these change the base model's weights, too, before training begins.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def is_adapter(folder: Path) -> bool:
    """Whether an adapter lies in `folder`."""
    return any((folder / name).is_file() for name in (CONFIG, *WEIGHTS))


def apply_adapter(model: nn.Module, folder: Path, where: str) -> None:
    """Put the adapter that lies in `folder` into the fp32 weights of `model`, in place.

    where: what an error message calls the folder's model. Raises UsageError for anything that
    would not be applied exactly, naming it.
    """
    what = f"the adapter of {where}"
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{what} has no {CONFIG}, which says how its weights are scaled")
    config = read_json(folder / CONFIG)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f"{what} has no {' or '.join(WEIGHTS)}")
    _check(config, what)
    low_rank: dict[str, dict[str, Tensor]] = {}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in read_weights(path).items():
            module, part = _split_name(name, what)
            if part:
                low_rank.setdefault(module, {})[part] = value.float()
                continue
            if module not in own or own[module].shape != value.shape:
                raise _does_not_fit(what, name)
            own[module].copy_(value)
        for module, parts in low_rank.items():
            _add(model, module, parts, config, what)


def _check(config: Mapping[str, Any], what: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _refused(what, f"it is of type '{kind}', and only LORA is supported")
    strange = sorted(k for k, value in config.items() if value and k not in _KNOWN)
    if strange:
        raise _refused(what, f"it sets {', '.join(f'{k} {config[k]}' for k in strange)}")
    if config.get("init_lora_weights") not in _STARTS:
        raise _refused(
            what,
            f"init_lora_weights '{config['init_lora_weights']}' changes the base model's weights",
        )


def _split_name(name: str, what: str) -> tuple[str, str]:
    """The module or parameter that a weight of the file is for, and which part of an update it
    is: "A", "B", "magnitude", or "" for a parameter that is replaced."""
    inner = name.removeprefix(_PREFIX)
    if inner == name:
        raise _does_not_fit(what, name)
    for ending, part in _PARTS.items():
        if inner.endswith(f".{ending}"):
            return inner.removesuffix(f".{ending}"), part
    if "lora_" in inner:
        raise _does_not_fit(what, name)
    return inner.replace(".base_layer.", "."), ""


def _add(
    model: nn.Module, name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], what: str
) -> None:
    """W + scale · B A, in DoRA with the rows brought to the learned magnitudes."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise _does_not_fit(what, name) from None
    # The output projection of nn.MultiheadAttention is a subclass of Linear: attention reads its
    # weight past peft's layer, so that an update there does nothing in the library.
    if type(layer) not in (nn.Linear, nn.Embedding, nn.Conv2d):
        raise _refused(what, f"it changes '{name}', a {type(layer).__name__}")
    if isinstance(layer, nn.Embedding) and "position" in name:
        # Some towers read this table past peft's layer, too.
        raise _refused(what, f"it changes the positions '{name}'")
    weight: Any = layer.weight
    if not {"A", "B"} <= parts.keys():
        raise _does_not_fit(what, name)
    a, b = parts["A"], parts["B"]
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    if a.shape[0] != rank or b.shape[1] != rank:
        raise _does_not_fit(what, name)
    update = b.flatten(1) @ a.flatten(1)
    update = update.T if isinstance(layer, nn.Embedding) else update
    if update.numel() != weight.numel() or len(update) != len(weight):
        raise _does_not_fit(what, name)
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    changed = weight + scale * update.reshape(weight.shape)
    if ("magnitude" in parts) != bool(config.get("use_dora")):
        raise _does_not_fit(what, name)
    if config.get("use_dora"):
        if not isinstance(layer, nn.Linear):
            raise _refused(what, f"use_dora for '{name}', a {type(layer).__name__}")
        changed = changed * (parts["magnitude"].flatten() / changed.norm(dim=1)).unsqueeze(1)
    weight.copy_(changed)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern that fits the end of a module's name, as peft looks it up."""
    keys: Iterable[str] = patterns or {}
    found = next((key for key in keys if re.match(rf"(.*\.)?({key})$", name)), None)
    return otherwise if patterns is None or found is None else patterns[found]


def _refused(what: str, why: str) -> UsageError:
    return UsageError(
        f"{what} is not applied: {why}. Merge it with peft (model.merge_and_unload()), save the "
        "result with save_pretrained, and give that folder"
    )


def _does_not_fit(what: str, name: str) -> UsageError:
    return _refused(what, f"'{name}' does not fit the base model or the adapter's settings")
