"""`transformers:` names: load a folder or repository and wrap its model's towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vipbench.api import Backbone, UnsupportedError
from vipbench.backbones.loading import adapters
from vipbench.backbones.loading import hub as _hub
from vipbench.backbones.loading import preprocess as _preprocess
from vipbench.backbones.loading.openclip import build
from vipbench.backbones.loading.preprocess import PREPROCESS_REVISION, read_preprocess
from vipbench.backbones.loading.remote_code import allowed_copy, never_ask
from vipbench.backbones.loading.tokenizers import check_files, framed_wordpieces
from vipbench.backbones.loading.weights import check_scale, read_json, read_weights
from vipbench.backbones.towers.bidirectional import BertSide, SiglipSide, TextSide, first_row
from vipbench.backbones.towers.clip import ClipBackbone, digest_weights
from vipbench.backbones.towers.dual import DualBackbone
from vipbench.backbones.towers.image import Projected, side_of_timm, side_of_transformers
from vipbench.backbones.towers.preprocess import Preprocess
from vipbench.backbones.towers.tokens import Wordpieces
from vipbench.errors import UsageError
from vipbench.fetching import HubFile, HubModules, Needed
from vipbench.trust import REMOTE

# Types of model that need no code of their own.
PAIRS = ("clip", "siglip", "siglip2", "vision-text-dual-encoder")


def build_pair(
    model: Any,
    kind: str,
    *,
    wordpieces: Wordpieces,
    tokens: int | None,
    preprocess: Callable[[int], Preprocess],
    name: str,
    licence: str,
) -> Backbone:
    """A backbone of `model`. tokens: the longest text its tokenizer makes, None for no limit.
    preprocess: side of the square that the image tower takes -> transform to it.

    Raises UnsupportedError for towers that are not known, naming them.
    """
    common: dict[str, Any] = {
        "name": name,
        "licence": licence,
        "wordpieces": wordpieces,
        "revisions": {"preprocess": PREPROCESS_REVISION},
    }
    if kind == "clip":
        clip, config = as_open_clip(model)
        _check_end(model.config.text_config, wordpieces)
        made = preprocess(config["vision_cfg"]["image_size"])
        return ClipBackbone(clip, config=config, preprocess=made, **common)
    texts: TextSide
    if kind in ("siglip", "siglip2"):
        images = side_of_transformers(
            model.vision_model, None, partial(_untrained_tower, model.vision_model, None)
        )
        texts = SiglipSide(model.text_model, wordpieces.pad)
        dim = int(model.config.vision_config.hidden_size)
    elif kind == "vision-text-dual-encoder":
        vision, projection = model.vision_model, model.visual_projection
        images = side_of_transformers(
            vision, projection, partial(_untrained_tower, vision, projection)
        )
        texts = BertSide(model.text_model, partial(_pooler, model), model.text_projection, tokens)
        dim = int(projection.out_features)
    else:
        images, texts, dim = _own_code(model, tokens)
    return DualBackbone(
        model,
        images=images,
        texts=texts,
        dim=dim,
        logit_scale=model.logit_scale.exp().item(),
        facts=model.config.to_diff_dict(),
        preprocess=preprocess(images.image_size),
        **common,
    )


def _check_end(config: Any, wordpieces: Wordpieces) -> None:
    """Raises UnsupportedError where the library pools another row than that of the token which the
    tokenizer ends texts with."""
    end = wordpieces.end[-1] if wordpieces.end else None
    # By its old rule, kept for configurations that state 2, it pools the token of highest number.
    pooled = wordpieces.highest if config.eos_token_id == 2 else config.eos_token_id
    if end != pooled:
        raise UnsupportedError(
            f"its text tower pools the token {pooled} (eos_token_id {config.eos_token_id}), and "
            f"its tokenizer ends texts with {end}; put the tokenizer files of the checkpoint there"
        )


def _pooler(model: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """BERT's own pooler of the start token's row."""
    pooler = getattr(model, "text_model", model).pooler
    if pooler is None:
        raise UnsupportedError("its text tower has no pooler")
    pooled: Tensor = pooler.activation(pooler.dense(first_row(x, lengths)))
    return pooled


def _untrained_tower(vision: Any, projection: nn.Linear | None) -> nn.Module:
    """The image tower with new weights."""
    new = type(vision)(vision.config)
    if projection is None:
        return side_of_transformers(new, None, nn.Identity).tower
    linear = nn.Linear(projection.in_features, projection.out_features, bias=False)
    return Projected(new, linear)


def _own_code(model: Any, tokens: int | None) -> tuple[Any, TextSide, int]:
    """Models that bring their code: a timm tower `visual` with a `visual_head`, a BERT `text`
    (the form of KEEP)."""
    wanted = ("visual", "visual_head", "text", "logit_scale")
    absent = [
        part for part in wanted if not isinstance(getattr(model, part, None), nn.Module | Tensor)
    ]
    if absent:
        raise UnsupportedError(
            f"its code builds a {type(model).__name__} without {', '.join(absent)}, which "
            "vipbench needs; wrap it in a plugin (docs/plugins.md)"
        )
    size = model.visual.patch_embed.img_size[0]
    tower = nn.Sequential(model.visual, model.visual_head)

    def fresh() -> nn.Module:
        new: Any = type(model)(model.config)
        return nn.Sequential(new.visual, new.visual_head)

    images = side_of_timm(model.visual, model.visual_head, int(size), tower, fresh)
    texts = BertSide(model.text, partial(_pooler, model.text), nn.Identity(), tokens)
    return images, texts, int(texts.words.embedding_dim)


def as_open_clip(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A CLIP of the transformers library as the same CLIP of open_clip's classes, and its
    configuration. Raises UnsupportedError where open_clip has no such CLIP."""
    c = model.config
    acts = {c.text_config.hidden_act, c.vision_config.hidden_act}
    if len(acts) > 1 or not acts <= {"quick_gelu", "gelu"}:
        raise UnsupportedError(f"a CLIP with the activations {', '.join(sorted(acts))}")
    config = {
        "embed_dim": c.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            **_sizes(c.vision_config),
            "image_size": c.vision_config.image_size,
            "patch_size": c.vision_config.patch_size,
            "head_width": c.vision_config.hidden_size // c.vision_config.num_attention_heads,
        },
        "text_cfg": {
            **_sizes(c.text_config),
            "heads": c.text_config.num_attention_heads,
            "context_length": c.text_config.max_position_embeddings,
            "vocab_size": c.text_config.vocab_size,
        },
    }
    clip: Any = build(config)
    text, vision = model.text_model, model.vision_model
    with torch.no_grad():
        for ours, theirs in (
            (clip.token_embedding.weight, text.embeddings.token_embedding.weight),
            (clip.positional_embedding, text.embeddings.position_embedding.weight),
            (clip.text_projection, model.text_projection.weight.T),
            (clip.logit_scale, model.logit_scale),
            (clip.visual.class_embedding, vision.embeddings.class_embedding),
            (clip.visual.positional_embedding, vision.embeddings.position_embedding.weight),
            (clip.visual.conv1.weight, vision.embeddings.patch_embedding.weight),
            (clip.visual.proj, model.visual_projection.weight.T),
        ):
            ours.copy_(theirs)
        _copy(clip.ln_final, text.final_layer_norm)
        _copy(clip.visual.ln_pre, vision.pre_layrnorm)
        _copy(clip.visual.ln_post, vision.post_layernorm)
        _copy_blocks(clip.transformer.resblocks, text.encoder.layers)
        _copy_blocks(clip.visual.transformer.resblocks, vision.encoder.layers)
    return clip, config


def _sizes(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _copy(ours: Any, theirs: Any) -> None:
    ours.weight.copy_(theirs.weight)
    ours.bias.copy_(theirs.bias)


def _copy_blocks(ours: Any, theirs: Any) -> None:
    for block, layer in zip(ours, theirs, strict=True):
        attention = layer.self_attn
        packed = [attention.q_proj, attention.k_proj, attention.v_proj]
        block.attn.in_proj_weight.copy_(torch.cat([p.weight for p in packed]))
        block.attn.in_proj_bias.copy_(torch.cat([p.bias for p in packed]))
        _copy(block.attn.out_proj, attention.out_proj)
        _copy(block.ln_1, layer.layer_norm1)
        _copy(block.ln_2, layer.layer_norm2)
        _copy(block.mlp.c_fc, layer.mlp.fc1)
        _copy(block.mlp.c_proj, layer.mlp.fc2)


# In the library's order: a single file, or the index of several.
_WEIGHTS = tuple(
    (
        "model.safetensors model.safetensors.index.json pytorch_model.bin "
        "pytorch_model.bin.index.json"
    ).split()
)


@dataclass(frozen=True)
class _Place:
    """The folders of a model's configuration and weights, and of an adapter for them."""

    base: Path
    adapter: Path | None = None

    def holding(self, *names: str) -> Path:
        """The adapter's folder where one of these files is, else the base model's."""
        found = self.adapter is not None and any((self.adapter / n).is_file() for n in names)
        return self.adapter if found and self.adapter is not None else self.base


def load_transformers(argument: str, asked: str | None = None) -> Backbone:
    """The backbone `transformers:argument`. asked: its source as a run names it, if another.

    Raises UntrustedCodeError where its own code may not run (see `vipbench.trust`), and UsageError
    for a folder or name without a model, for kinds that are not known, for a model that needs its
    own code where `+remote-code` does not allow it, and for an adapter that cannot be applied
    exactly.
    """
    source = argument.removesuffix(REMOTE)
    remote = argument.endswith(REMOTE)
    where = f"transformers:{source}"
    local = Path(source).expanduser()
    place = _local(local) if local.is_dir() else _place(_from_hub(argument))
    config = read_json(place.base / "config.json")
    kind = str(config.get("model_type", ""))
    if kind not in PAIRS and not remote:
        raise UsageError(_refusal(where, kind, config))
    _check_weights(place.base, where)
    if not remote:
        return _built(place, kind, where, local.is_dir(), remote)
    if place.adapter is not None:
        raise UsageError(
            f"{where}: an adapter is not applied to a model with code of its own; merge it with "
            "peft (model.merge_and_unload())"
        )
    with allowed_copy(place.base, where, asked or f"transformers:{argument}") as (base, code):
        backbone = _built(replace(place, base=base), kind, where, local.is_dir(), remote)
    backbone.remote_code = code
    return backbone


def _built(place: _Place, kind: str, where: str, own: bool, remote: bool) -> Backbone:
    """The backbone of the files that lie there. own: whether they are the user's."""
    model = _load(place.base, where, remote and kind not in PAIRS)
    if place.adapter is not None:
        adapters.apply_adapter(model, place.adapter, where)
    _check_numbers(model, where)
    words = place.holding(*_hub.TOKENIZER_FILES)
    images = place.holding(*_preprocess.FILES)
    tokenizer = _tokenizer(words, where, remote)
    # Tables tell local checkpoints apart by content, and never show a path.
    digest = f"{kind or type(model).__name__}@{digest_weights(model)[:8]}"
    try:
        backbone = build_pair(
            model,
            kind,
            wordpieces=framed_wordpieces(tokenizer, _text_cleaner(kind, tokenizer)),
            tokens=_most_tokens(words),
            preprocess=partial(read_preprocess, images, kind, where=where, remote=remote),
            name=f"transformers:{digest}" if own else where,
            licence="unknown" if own else f"see huggingface.co/{where.partition(':')[2]}",
        )
    except UnsupportedError as error:
        raise UsageError(f"{where} cannot be used: {error}") from error
    sigmoid = getattr(model, "logit_bias", None) is not None
    backbone.notes = check_scale(model.logit_scale, sigmoid, where)
    if place.adapter is not None:
        backbone.notes += ("the LoRA adapter beside it is merged into its weights",)
    if kind in _preprocess.UNSTATED and not any((images / n).is_file() for n in _preprocess.FILES):
        backbone.notes += (
            f"it has no {_preprocess.FILES[0]}: images are prepared as the library's "
            f"{_preprocess.UNSTATED[kind]} does by default",
        )
    return backbone


def _text_cleaner(kind: str, tokenizer: Any) -> Callable[[str], str]:
    """What is done to a text before it is tokenised. SigLIP and SigLIP 2 were trained on lowercase
    texts; the tokenizers of their own classes see to that, and Gemma's, which the repositories of
    SigLIP 2 at a fixed resolution name, does not."""
    own = type(tokenizer).__name__.removesuffix("Fast") in ("SiglipTokenizer", "Siglip2Tokenizer")
    return str if own or kind not in ("siglip", "siglip2") else str.lower


def _refusal(where: str, kind: str, config: dict[str, Any]) -> str:
    if "auto_map" in config:
        return (
            f"{where} needs code from its own folder or repository ('{kind}'). To run this code, "
            f"if you trust its author, write {where}{REMOTE}"
        )
    return (
        f"{where} is a model of type '{kind}'; known are {', '.join(PAIRS)}. Other models need "
        "a plugin (docs/plugins.md)"
    )


def transformers_files(argument: str) -> Iterator[Needed]:
    """The files that `load_transformers` needs and that are not the user's own, one after another:
    a later one may only be known once the earlier is there. Raises UsageError."""
    repo = argument.removesuffix(REMOTE)
    if (local := Path(repo).expanduser()).is_dir():
        base = None if (local / "config.json").is_file() else _base_of(local)
        if isinstance(base, str):
            yield from transformers_files(base)
        return
    org, slash, name = repo.partition("/")
    if not (org and slash and name) or "/" in name:
        raise UsageError(
            f"transformers:{repo}: no such folder, and not a name of the form ORG/NAME"
        )
    hint = _hub.bring(
        f"transformers:{argument}", repo, "or give the folder itself: transformers:FOLDER"
    )
    licence = f"see huggingface.co/{repo}"
    first = HubFile(
        repo, ("config.json", adapters.CONFIG), (*_preprocess.FILES, adapters.CONFIG), licence, hint
    )
    yield first
    path = first.find()
    if path is not None and path.name == adapters.CONFIG:
        raise UsageError(
            f"transformers:{repo} is an adapter without its base model: run `hf download "
            f"{repo} --local-dir FOLDER`, and give transformers:FOLDER"
        )
    if path is not None and (path.parent / adapters.CONFIG).is_file():
        yield HubFile(repo, adapters.WEIGHTS, (), licence, hint)
    if argument.endswith(REMOTE):
        yield HubModules(repo, licence, hint)
    weights = HubFile(repo, _WEIGHTS, (), licence, hint)
    yield weights
    path = weights.find()
    if path is not None and path.name.endswith(".index.json"):
        yield from _hub.shards(path, repo, licence, hint)
    yield _hub.tokenizer_files(repo, hint)


def _from_hub(argument: str) -> Path:
    """The folder in the Hub's cache that holds all of it."""
    folder = Path()
    for _ in range(2):
        # Twice, should the repository have changed since some of it was fetched.
        folders = [(one.find() or one.fetch()).parent for one in transformers_files(argument)]
        folder = folders[-1]
        if set(folders) == {folder}:
            break
    return folder


def _local(folder: Path) -> _Place:
    """A folder of the user's: a model, a model with an adapter beside it, or an adapter alone.
    Raises UsageError."""
    base = None if (folder / "config.json").is_file() else _base_of(folder)
    if base is None:
        return _place(folder)
    return _Place(_from_hub(base) if isinstance(base, str) else base, folder)


def _place(folder: Path) -> _Place:
    return _Place(folder, folder if adapters.is_adapter(folder) else None)


def _base_of(folder: Path) -> Path | str | None:
    """The folder or the ORG/NAME that an adapter was trained on; None where none lies there.
    Raises UsageError for an adapter that names none, or an adapter."""
    path = folder / adapters.CONFIG
    if not path.is_file():
        return None
    named = str(read_json(path).get("base_model_name_or_path") or "")
    # Another folder of that name may lie in the working directory: only a model counts.
    places = (Path(named).expanduser(), folder / named)
    found = next((p for p in places if (p / "config.json").is_file()), None)
    if named and found is None and named.count("/") == 1 and not named.startswith((".", "~", "/")):
        return named
    if not named or found is None:
        raise UsageError(
            f"the folder {folder} holds an adapter alone, and the base model that it names "
            f"('{named}') is not there; put the base model's files into the folder, or state "
            f"where they are as base_model_name_or_path in {path.name}"
        )
    return found


def _check_weights(folder: Path, where: str) -> None:
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UsageError(
            f"{where} has no {' or '.join(_WEIGHTS)}. Save it with model.save_pretrained(FOLDER)"
        )


def _load(folder: Path, where: str, remote: bool) -> Any:
    """The model, fp32, every weight from the file."""
    import transformers

    never_ask()
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
            if remote:
                model, info = transformers.AutoModel.from_pretrained(
                    folder,
                    use_safetensors=any((folder / name).is_file() for name in _WEIGHTS[:2]),
                    weights_only=True,
                    trust_remote_code=True,
                    local_files_only=True,
                    # The library once renamed every "gamma" to "weight", also those of layer
                    # scales.
                    key_mapping={r"\.ls([12])\.weight$": r".ls\1.gamma"},
                    **options,
                )
            else:
                config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
                model, info = transformers.MODEL_MAPPING[type(config)].from_pretrained(
                    None, config=config, state_dict=_read(folder), **options
                )
    except UsageError:
        raise
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{where} cannot be loaded: {reason[0]}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(info["missing_keys"])
    misfit = sorted(str(key) for key in info["mismatched_keys"])
    if missing or misfit:
        raise UsageError(
            f"the weights of {where} do not fit its config.json: {len(missing) + len(misfit)} are "
            f"missing or of another shape ({_first_names([*missing, *misfit])})"
        )
    strange = sorted(info["unexpected_keys"])
    if strange and not remote:
        raise UsageError(
            f"the weights of {where} do not fit its config.json: {len(strange)} have no place in "
            f"the model ({_first_names(strange)})"
        )
    return model


def _read(folder: Path) -> dict[str, Tensor]:
    """The weights, from one file or from those that an index names. Raises UsageError."""
    first = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    if not first.name.endswith(".index.json"):
        return read_weights(first)
    parts = dict.fromkeys(map(str, read_json(first).get("weight_map", {}).values()))
    return {k: v for part in parts for k, v in read_weights(folder / part).items()}


def _check_numbers(model: nn.Module, where: str) -> None:
    bad = [n for n, v in model.state_dict().items() if not bool(torch.isfinite(v.float()).all())]
    if bad:
        raise UsageError(f"the weights of {where} hold NaN or infinity ({_first_names(bad)})")


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _tokenizer(folder: Path, where: str, remote: bool) -> Any:
    import transformers

    if not remote:
        check_files(folder, where)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote
        )
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"the tokenizer of {where} cannot be loaded: {reason[0]}") from error


def _most_tokens(folder: Path) -> int | None:
    """The length that the tokenizer cuts texts at, where it says one."""
    path = folder / "tokenizer_config.json"
    most = read_json(path).get("model_max_length") if path.is_file() else None
    return int(most) if most is not None and most < 1_000_000 else None
