"""Models of open_clip whose text tower is not a plain CLIP's: BERT (BiomedCLIP's form), CoCa."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vipbench.api import UnsupportedError
from vipbench.backbones._dual import DualBackbone
from vipbench.backbones._images import side_of_openclip
from vipbench.backbones._texts import Wordpieces
from vipbench.backbones._textsides import BertSide, CocaSide, TextSide, first_row, mean_row
from vipbench.fetching import HubFile


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
