"""Files of the Hugging Face Hub: from the local cache if they are there, else fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vipbench.fetching import HubFile, Needed

# Any of these holds a tokenizer's vocabulary; the others go with it.
TOKENIZER_FILES = tuple(
    (
        "tokenizer.json vocab.txt vocab.json spiece.model tokenizer.model sentencepiece.bpe.model"
    ).split()
)

BESIDE_TOKENIZERS = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "config.json",
)


def bring(source: str, repo: str, otherwise: str) -> str:
    """The end of an error message: how to bring the files of a source where there is no
    connection. otherwise: what else can be done."""
    return (
        f"On a connected machine, `vipbench fetch {source}` (or `hf download {repo}`) fills the "
        f"cache, which can be copied; {otherwise}"
    )


def tokenizer_files(repo: str, hint: str = "") -> HubFile:
    """The tokenizer in `repo`."""
    return HubFile(repo, TOKENIZER_FILES, BESIDE_TOKENIZERS, bring=hint)


def shards(index: Path, repo: str, licence: str, hint: str) -> Iterator[Needed]:
    """The parts of weights that an index divides into several files."""
    names = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
    for name in dict.fromkeys(map(str, names)):
        yield HubFile(repo, (name,), licence=licence, bring=hint)


FORMS = (
    "openclip:ARCH/TAG (weights that open_clip knows, such as openclip:ViT-B-16/openai), "
    "openclip:hf-hub:ORG/NAME, openclip:local-dir:FOLDER (a repository of that form in a folder), "
    "or a local checkpoint: openclip:ARCH+quickgelu@PATH, openclip:ARCH+gelu@PATH, "
    "openclip:ARCH/TAG@PATH"
)
