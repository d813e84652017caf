"""Tokenizers of the transformers library as `Wordpieces`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip

from vipbench.api import UnsupportedError
from vipbench.backbones.loading.hub import TOKENIZER_FILES, tokenizer_files
from vipbench.backbones.towers.clip import clip_wordpieces
from vipbench.backbones.towers.tokens import Wordpieces
from vipbench.errors import UsageError
from vipbench.fetching import HubFile

# Part of the fingerprint of backbones whose tokenizer is framed here: raise it when the same files
# give other tokens.
TOKENIZER_REVISION = 1


def openclip_wordpieces(
    config: Mapping[str, Any], folder: Path | None, name: str, bring: str
) -> Wordpieces:
    """The tokenizer that an open_clip configuration names.

    folder: where the model lies; its own tokenizer files come first. name, bring: for errors,
    the model and how to get at its files. Raises UsageError where it cannot be had.
    """
    text = config["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    # A checkpoint's own file does not decide that its code runs.
    options.pop("trust_remote_code", None)
    hub_name = text.get("hf_tokenizer_name")
    if not hub_name:
        options.pop("reduction_mask", None)  # how to shorten long texts; they are refused
        tokenizer = open_clip.tokenizer.SimpleTokenizer(**options)
        return clip_wordpieces(tokenizer, json.dumps(options, sort_keys=True))
    try:
        source = openclip_tokenizer(config, folder, bring)
        place = source.ensure().parent if isinstance(source, HubFile) else source
        tokenizer = open_clip.tokenizer.HFTokenizer(str(place), trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many kinds
        raise UsageError(
            f"the tokenizer '{hub_name}' of {name} cannot be had: "
            f"{(str(error).splitlines() or [''])[0]} {bring}"
        ) from error
    strip = bool(options.get("strip_sep_token"))
    return framed_wordpieces(tokenizer.tokenizer, tokenizer.clean_fn, strip)


def openclip_tokenizer(
    config: Mapping[str, Any], folder: Path | None, bring: str
) -> HubFile | Path | None:
    """Where the tokenizer is that an open_clip configuration names: in a folder, on the Hub, or
    nowhere, since it is CLIP's own."""
    name = config["text_cfg"].get("hf_tokenizer_name")
    if not name:
        return None
    for place in (folder, Path(name)):
        if place is not None and any((place / file).is_file() for file in TOKENIZER_FILES):
            return place
    return tokenizer_files(name, bring)


def framed_wordpieces(
    tokenizer: Any, clean: Callable[[str], str] = str, strip_separator: bool = False
) -> Wordpieces:
    """`tokenizer`; what frames a text is read off an example.

    clean: what is done to a text first. strip_separator: id 0 in the separator's place.
    Raises UnsupportedError for a tokenizer that pads on the left or frames in another way.
    """
    if tokenizer.padding_side != "right" or tokenizer.pad_token_id is None:
        raise UnsupportedError("its tokenizer does not pad on the right")

    def encode(text: str) -> list[int]:
        return list(tokenizer(clean(text), add_special_tokens=False).input_ids)

    bare, framed = encode("a"), list(tokenizer(clean("a")).input_ids)
    at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), None)
    if at is None:
        raise UnsupportedError("its tokenizer changes a text when it frames it")
    end = framed[at + len(bare) :]
    if strip_separator:
        end = [0 if token == tokenizer.sep_token_id else token for token in end]
    glue = "" if encode("a a") == bare * 2 or encode("a a") != bare + encode(" a") else " "
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return Wordpieces(
        encode=encode,
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        start=tuple(framed[:at]),
        end=tuple(end),
        pad=int(tokenizer.pad_token_id),
        identity=f"{type(tokenizer).__name__} {hashlib.sha256(vocabulary).hexdigest()} "
        f"revision {TOKENIZER_REVISION}",
        glue=glue,
    )
