"""`openclip:` names: find config and weights, build the model, wrap its towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from vipbench.api import UnsupportedError
from vipbench.backbones.loading import hub as _hub
from vipbench.backbones.loading.adapters import CONFIG as ADAPTER
from vipbench.backbones.loading.adapters import is_adapter
from vipbench.backbones.loading.hub import FORMS
from vipbench.backbones.loading.remote_code import never_ask
from vipbench.backbones.loading.tokenizers import openclip_tokenizer, openclip_wordpieces
from vipbench.backbones.loading.weights import (
    check_scale,
    load_into,
    read_json,
    read_weights,
    safetensors_metadata,
)
from vipbench.backbones.towers.bidirectional import (
    BertSide,
    CocaSide,
    TextSide,
    first_row,
    mean_row,
)
from vipbench.backbones.towers.clip import ClipBackbone
from vipbench.backbones.towers.dual import DualBackbone
from vipbench.backbones.towers.image import side_of_openclip
from vipbench.backbones.towers.tokens import Wordpieces
from vipbench.errors import UsageError, unknown
from vipbench.fetching import HubFile, Needed


def needs_dual(config: Mapping[str, Any]) -> bool:
    """Whether the text tower of this configuration is another than CLIP's own."""
    text = config["text_cfg"]
    return bool(text.get("hf_model_name") or text.get("embed_cls"))


def bert_folder(config: Mapping[str, Any], folder: Path | None) -> str | None:
    """The folder with the configuration of the text tower that `config` names, None where it
    names none. Raises UsageError where it cannot be had."""
    for place in _bert_places(config, folder):
        if (place / "config.json").is_file():
            return str(place)
    return next((str(one.ensure().parent) for one in bert_files(config, folder)), None)


def bert_files(
    config: Mapping[str, Any], folder: Path | None, bring: str = ""
) -> Iterator[HubFile]:
    """The configuration of that text tower, where it has to come from the Hub."""
    places = _bert_places(config, folder)
    if places and not any((place / "config.json").is_file() for place in places):
        name = config["text_cfg"]["hf_model_name"]
        hint = bring or (
            f"The text tower is built by that file: on a connected machine, `hf download {name} "
            "config.json` fills the cache, which can be copied"
        )
        yield HubFile(name, ("config.json",), bring=hint)


def _bert_places(config: Mapping[str, Any], folder: Path | None) -> list[Path]:
    name = config["text_cfg"].get("hf_model_name")
    if not name:
        return []
    return [Path(name), *([] if folder is None else [folder / name])]


def dual_of_openclip(
    model: Any,
    *,
    fresh: Callable[[], nn.Module],
    config: Mapping[str, Any],
    name: str,
    licence: str,
    preprocess: Mapping[str, Any],
    wordpieces: Wordpieces,
) -> DualBackbone:
    """A backbone of such a model. fresh: another model with new weights.

    Raises UnsupportedError for towers that are not known, naming them.
    """
    texts: TextSide
    if config["text_cfg"].get("hf_model_name"):
        text = model.text
        texts = BertSide(
            text.transformer, _pooling(text), text.proj, config["text_cfg"].get("context_length")
        )
    else:
        texts = CocaSide(model.text)

    def fresh_tower() -> nn.Module:
        new: Any = fresh()
        return side_of_openclip(new.visual, nn.Identity).tower

    return DualBackbone(
        model,
        images=side_of_openclip(model.visual, fresh_tower),
        texts=texts,
        dim=int(config["embed_dim"]),
        logit_scale=model.logit_scale.exp().item(),
        facts={"openclip": config},
        name=name,
        licence=licence,
        wordpieces=wordpieces,
        preprocess=preprocess,
    )


def _pooling(text: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """What open_clip's adapter does with the last hidden rows."""
    kind = type(text.pooler).__name__
    if kind == "MeanPooler":
        return mean_row
    if kind == "ClsPooler" and text.pooler.use_pooler_output and text.transformer.pooler:
        return partial(_own_pooler, text.transformer.pooler)
    if kind in ("ClsPooler", "ClsLastHiddenStatePooler"):
        return first_row
    raise UnsupportedError(f"a text tower with the pooling {kind}")


def _own_pooler(pooler: Any, x: Tensor, lengths: Tensor) -> Tensor:
    pooled: Tensor = pooler.activation(pooler.dense(first_row(x, lengths)))
    return pooled


_HUB = "hf-hub:"
_FOLDER = "local-dir:"
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_ACTIVATIONS = {"quickgelu": True, "gelu": False}

# Preprocessing that a configuration may state.
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True)
class _Source:
    """Everything that is needed before weights are read.

    config: what open_clip builds the model from, with `quick_gelu` settled. weights: the file,
    or how to fetch it. folder: where a tokenizer may lie beside the weights.
    """

    name: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    path: Path | None = None
    repo: str | None = None
    files: tuple[str, ...] = _HUB_WEIGHTS
    licence: str = "unknown"
    folder: Path | None = None
    bring: str = field(default="", repr=False)

    @property
    def weights(self) -> HubFile:
        """The weights on the Hub."""
        return HubFile(self.repo or "", self.files, licence=self.licence, bring=self.bring)


def load_openclip(argument: str) -> ClipBackbone | DualBackbone:
    """The backbone `openclip:argument`.

    Raises UsageError for an unknown architecture or tag, before any weights are needed; for
    weights that cannot be had; and for a checkpoint that is refused or does not fit.
    """
    source = _source(argument)
    path = source.path or source.weights.ensure()
    weights = read_weights(path)
    text_config = bert_folder(source.config, source.folder)
    model: Any = build(source.config, text_config)
    load_into(model, weights, f"openclip:{argument}")
    pieces = openclip_wordpieces(source.config, source.folder, source.name, source.bring)
    common: dict[str, Any] = {
        **{"name": source.name, "config": source.config, "licence": source.licence},
        **{"preprocess": source.preprocess, "wordpieces": pieces},
    }
    try:
        backbone: ClipBackbone | DualBackbone
        if needs_dual(source.config):
            fresh = partial(build, source.config, text_config)
            backbone = dual_of_openclip(model, fresh=fresh, **common)
        else:
            backbone = ClipBackbone(model, **common)
    except UnsupportedError as error:
        raise UsageError(f"openclip:{argument} cannot be used: {error}") from error
    sigmoid = getattr(model, "logit_bias", None) is not None
    backbone.notes = check_scale(model.logit_scale, sigmoid, f"openclip:{argument}")
    if source.path is not None:
        # Tables tell local checkpoints apart by content, and never show a path.
        backbone.name = f"{source.name}@{backbone.weights_sha256[:8]}"
    return backbone


def openclip_files(argument: str) -> Iterator[Needed]:
    """The files that `load_openclip` needs and that are not the user's own, one after another: a
    later one may only be known once the earlier is there. Raises UsageError."""
    if argument.startswith(_HUB):
        yield _hub_config(argument)
    source = _source(argument)
    if source.path is None:
        yield source.weights
    yield from bert_files(source.config, source.folder, source.bring)
    tokenizer = openclip_tokenizer(source.config, source.folder, source.bring)
    if isinstance(tokenizer, HubFile):
        yield tokenizer


def _source(argument: str) -> _Source:
    if argument.startswith(_HUB):
        return _from_hub(argument)
    if argument.startswith(_FOLDER):
        return _from_folder(argument)
    return _from_path(argument) if "@" in argument else _from_tag(argument)


def build(config: Mapping[str, Any], text_config: str | None = None) -> nn.Module:
    """An open_clip model with random weights, in evaluation mode; torch's generator is left as
    it was. text_config: the folder that holds the configuration of a text tower of the
    transformers library."""
    settings = {k: v for k, v in config.items() if k != "custom_text"}
    vision, text = dict(settings["vision_cfg"]), dict(settings["text_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if text_config is not None:
        text |= {"hf_model_name": text_config, "hf_model_pretrained": False}
        never_ask()
    settings |= {"vision_cfg": vision, "text_cfg": text}
    kind = open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    elif config.get("custom_text") or text_config is not None or text.get("embed_cls"):
        kind = open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = kind(**settings)
    return model.eval()


def _from_tag(argument: str) -> _Source:
    arch, slash, tag = argument.partition("/")
    config = _arch_config(arch)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if not slash or not tag:
        known = f"; its tags are {', '.join(tags)}" if tags else ""
        raise UsageError(f"openclip:{argument} does not name its weights{known}. Give {FORMS}")
    facts = _tag_facts(arch, tag)
    repo, _, file = str(facts["hf_hub"]).rpartition("/")
    files: tuple[str, ...] = _HUB_WEIGHTS
    if file:
        stem = file.rpartition(".")[0]
        files = tuple(dict.fromkeys((f"{stem}.safetensors", file)))
    return _Source(
        name=f"openclip:{arch}/{tag}",
        config={**config, "quick_gelu": _tag_activation(config, facts)},
        preprocess=_preprocess(facts),
        repo=repo,
        files=files,
        licence="MIT" if tag == "openai" else f"see huggingface.co/{repo}",
        bring=_hub.bring(
            f"openclip:{argument}",
            repo,
            f"or give the file itself: openclip:{arch}/{tag}@PATH",
        ),
    )


def _hub_config(argument: str) -> HubFile:
    repo = argument.removeprefix(_HUB)
    org, slash, name = repo.partition("/")
    if not (org and slash and name):
        raise UsageError(f"openclip:{argument}: expected openclip:hf-hub:ORG/NAME")
    bring = _hub.bring(
        f"openclip:{argument}",
        repo,
        "or give the weights as a file: openclip:ARCH+quickgelu@PATH or openclip:ARCH+gelu@PATH",
    )
    licence = f"see huggingface.co/{repo}"
    return HubFile(repo, ("open_clip_config.json",), licence=licence, bring=bring)


def _from_hub(argument: str) -> _Source:
    wanted = _hub_config(argument)
    repo, bring = wanted.repo, wanted.bring
    config, preprocess = _config_file(wanted.ensure())
    return _Source(
        name=f"openclip:{argument}",
        config={**config, "quick_gelu": bool(config.get("quick_gelu", False))},
        preprocess=preprocess,
        repo=repo,
        licence=f"see huggingface.co/{repo}",
        bring=bring,
    )


def _from_folder(argument: str) -> _Source:
    folder = Path(argument.removeprefix(_FOLDER)).expanduser()
    path = folder / "open_clip_config.json"
    if not path.is_file():
        what = "does not exist" if not folder.is_dir() else "has no open_clip_config.json"
        raise UsageError(
            f"the folder {folder} {what}; expected open_clip_config.json and "
            f"{' or '.join(_HUB_WEIGHTS)} there, as open_clip writes them for the Hub"
        )
    config, preprocess = _config_file(path)
    if is_adapter(folder):
        raise UsageError(
            f"the folder {folder} holds an adapter ({ADAPTER}), which openclip: does not apply; "
            "merge it into the weights, and leave its files out"
        )
    weights = next((folder / n for n in _HUB_WEIGHTS if (folder / n).is_file()), None)
    if weights is None:
        raise UsageError(f"the folder {folder} has neither {' nor '.join(_HUB_WEIGHTS)}")
    return _Source(
        name="openclip:local",
        config={**config, "quick_gelu": bool(config.get("quick_gelu", False))},
        preprocess=preprocess,
        path=weights,
        folder=folder,
    )


def _from_path(argument: str) -> _Source:
    model, _, given = argument.partition("@")
    named, plus, activation = model.partition("+")
    arch, _, tag = named.partition("/")
    config = _arch_config(arch)
    if plus and activation not in _ACTIVATIONS:
        raise unknown("activation", activation, _ACTIVATIONS, hint=f"Give {FORMS}")
    facts = _tag_facts(arch, tag) if tag else {}
    path = Path(given).expanduser()
    if not given:
        raise UsageError(f"openclip:{argument} has no file after '@'")
    stated_by: dict[str, bool] = {}
    if plus:
        stated_by[f"+{activation}"] = _ACTIVATIONS[activation]
    if tag:
        stated_by[f"the tag '{tag}'"] = _tag_activation(config, facts)
    elif config.get("quick_gelu"):
        stated_by[f"the architecture '{arch}'"] = True
    metadata = safetensors_metadata(path)
    if metadata.get("quick_gelu", "").lower() in ("true", "false"):
        stated_by["the file"] = metadata["quick_gelu"].lower() == "true"
    beside = path.parent / "open_clip_config.json"
    preprocess = _preprocess(facts) or _common_preprocess(arch)
    if beside.is_file():
        stated, stated_preprocess = _config_file(beside)
        stated_by[beside.name] = bool(stated.get("quick_gelu", False))
        preprocess = stated_preprocess or preprocess
    if not path.is_file():
        read_weights(path)  # says what is wrong
    if not stated_by:
        raise UsageError(
            f"nothing says whether {path.name} was trained with QuickGELU (OpenAI's CLIP and what "
            f"was trained from it) or plain GELU (most of open_clip's own): write "
            f"openclip:{arch}+quickgelu@{given} or openclip:{arch}+gelu@{given}. The wrong one "
            "gives wrong numbers without an error"
        )
    if len(set(stated_by.values())) > 1:
        views = ", ".join(f"{who}: {'QuickGELU' if q else 'GELU'}" for who, q in stated_by.items())
        raise UsageError(
            f"openclip:{argument}: the activation is given twice, differently ({views})"
        )
    return _Source(
        name=f"openclip:{arch}",
        config={**config, "quick_gelu": next(iter(stated_by.values()))},
        preprocess=preprocess,
        path=path,
    )


def _arch_config(arch: str) -> dict[str, Any]:
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if config is None:
        raise unknown("open_clip architecture", arch, open_clip.list_models(), f"Give {FORMS}")
    return dict(config)


def _tag_facts(arch: str, tag: str) -> dict[str, Any]:
    facts = open_clip.get_pretrained_cfg(arch, tag)
    if not facts:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        raise unknown(f"tag of open_clip's {arch}", tag, tags)
    return dict(facts)


def _tag_activation(config: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("quick_gelu", False) or config.get("quick_gelu", False))


def _config_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model configuration and preprocessing of an `open_clip_config.json`."""
    loaded = read_json(path)
    config = loaded.get("model_cfg", loaded)
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(config, dict) or not all(key in config for key in needed):
        raise UsageError(f"{path} has no 'model_cfg' with {', '.join(needed)}")
    return config, _preprocess(loaded.get("preprocess_cfg") or {})


def _preprocess(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in _PREPROCESS if facts.get(key) is not None}


def _common_preprocess(arch: str) -> dict[str, Any]:
    """What all of open_clip's own weights of `arch` share; where they differ, open_clip's
    default, which is OpenAI's."""
    seen = [
        _preprocess(open_clip.get_pretrained_cfg(arch, tag))
        for tag in open_clip.list_pretrained_tags_by_model(arch)
    ]
    return seen[0] if seen and all(one == seen[0] for one in seen) else {}
