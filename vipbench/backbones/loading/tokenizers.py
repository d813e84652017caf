"""Tokenizers of the transformers library as `Wordpieces`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vipbench.api import UnsupportedError
from vipbench.backbones.loading.hub import TOKENIZER_FILES, tokenizer_files
from vipbench.backbones.towers.clip import clip_wordpieces
from vipbench.backbones.towers.tokens import Wordpieces
from vipbench.errors import UsageError
from vipbench.fetching import HubFile

# Part of the fingerprint of backbones whose tokenizer is framed here: raise it when the same files
# give other tokens.
TOKENIZER_REVISION = 1
_EXAMPLE = "Naïve X-RAY, 12.5 mm;  Clark's\t≥3 μ ﬁ"


def openclip_wordpieces(
    config: Mapping[str, Any], folder: Path | None, name: str, bring: str
) -> Wordpieces:
    """The tokenizer that an open_clip configuration names.

    folder: where the model lies; its own tokenizer files come first. name, bring: for errors,
    the model and how to get at its files. Raises UsageError where it cannot be had.
    """
    import open_clip

    text = config["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    # A checkpoint's own file does not decide that its code runs.
    options.pop("trust_remote_code", None)
    hub_name = text.get("hf_tokenizer_name")
    if not hub_name:
        options.pop("reduction_mask", None)  # how to shorten long texts; they are refused
        tokenizer = open_clip.tokenizer.SimpleTokenizer(**options)
        return clip_wordpieces(tokenizer, json.dumps(options, sort_keys=True))
    if mode := text.get("tokenizer_mode"):
        raise UsageError(f"{name} cuts texts in open_clip's mode '{mode}', which is not supported")
    try:
        source = openclip_tokenizer(config, folder, bring)
        place = source.ensure().parent if isinstance(source, HubFile) else source
        tokenizer = open_clip.tokenizer.HFTokenizer(str(place), trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many kinds
        raise UsageError(
            f"the tokenizer '{hub_name}' of {name} cannot be loaded: "
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


def check_files(folder: Path, where: str) -> None:
    """Raises UsageError where the library would build a tokenizer without its vocabulary."""
    held = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    lacking = ""
    if not held:
        lacking = f"no tokenizer: none of {', '.join(TOKENIZER_FILES)} exists"
    elif held == ["vocab.json"] and not (folder / "merges.txt").is_file():
        lacking = "vocab.json without merges.txt, which defines how words are split"
    if lacking:
        raise UsageError(
            f"{where} has {lacking}; put the checkpoint's own there, as "
            "tokenizer.save_pretrained(FOLDER) writes them"
        )


def framed_wordpieces(
    tokenizer: Any, clean: Callable[[str], str] = str, strip_separator: bool = False
) -> Wordpieces:
    """`tokenizer`; what frames a text is read off an example.

    clean: what is done to a text first. strip_separator: id 0 in the separator's place.
    Raises UnsupportedError for a tokenizer that pads on the left or frames in another way, and for
    one whose vocabulary cannot tell texts apart.
    """
    if tokenizer.padding_side != "right" or tokenizer.pad_token_id is None:
        raise UnsupportedError("its tokenizer pads on the left; expected padding on the right")

    def encode(text: str) -> list[int]:
        return list(tokenizer(clean(text), add_special_tokens=False).input_ids)

    vocabulary = tokenizer.get_vocab()
    _check_distinguishes_words(tokenizer, vocabulary, encode)
    bare, framed = encode("a"), list(tokenizer(clean("a")).input_ids)
    at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), None)
    if at is None:
        raise UnsupportedError(
            "its tokenizer changes the tokens of a text when it adds start and end tokens"
        )
    end = framed[at + len(bare) :]
    if strip_separator:
        end = [0 if token == tokenizer.sep_token_id else token for token in end]
    glue = "" if encode("a a") == bare * 2 or encode("a a") != bare + encode(" a") else " "
    # The vocabulary, and what else of the files changes tokens: case, accents, punctuation, merges.
    made = json.dumps([sorted(vocabulary.items()), encode(_EXAMPLE)]).encode()
    return Wordpieces(
        encode=encode,
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        start=tuple(framed[:at]),
        end=tuple(end),
        pad=int(tokenizer.pad_token_id),
        identity=f"{type(tokenizer).__name__} {hashlib.sha256(made).hexdigest()} "
        f"revision {TOKENIZER_REVISION}",
        glue=glue,
        unknown=tokenizer.unk_token_id,
        highest=max(vocabulary.values()),
    )


def _check_distinguishes_words(
    tokenizer: Any, vocabulary: Mapping[str, int], encode: Callable[[str], list[int]]
) -> None:
    special = set(tokenizer.all_special_ids)
    words = sorted(token for token in vocabulary.values() if token not in special)
    some = (tokenizer.decode([token]).strip() for token in words[:: 1 + len(words) // 64])
    if len({tuple(encode(text)) for text in some if text}) < 2:
        raise UnsupportedError(
            f"its tokenizer cannot tell texts apart: it makes the same tokens of the {len(words)} "
            "words in its vocabulary; put the tokenizer files of the checkpoint there"
        )
