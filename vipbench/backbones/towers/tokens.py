"""From texts to token ids: pieces, gaps for the context, nesting and ragged classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vipbench.api import Prompts, Text, TextError, Texts


@dataclass(frozen=True)
class Wordpieces:
    """A tokenizer without its framing: what stands before, behind and after every text.

    encode: text -> its token ids, without special tokens. decode: the way back, for messages.
    start, end: special tokens that open
    and close a text (either may be empty). pad: what fills up a shorter text.
    identity: what the tokenizer is, for a backbone's fingerprint. glue: what a piece that goes on
    with a text begins with, where the tokenizer tells a word after a space from one at the start.
    unknown: the token of what the vocabulary lacks, None where nothing is lacking. highest: the
    highest token of the vocabulary.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    identity: str
    glue: str = ""
    unknown: int | None = None
    highest: int | None = None

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of `text` that hold something the vocabulary lacks."""
        if self.unknown is None:
            return ()
        return tuple(w for w in re.findall(r"\w+", text) if self.unknown in self.encode(w))


def embed_texts(texts: Texts, wordpieces: Wordpieces, context_length: int) -> Prompts:
    """`texts` as Prompts; see `Backbone.embed`.

    Raises TextError for a text over `context_length` tokens, for texts with different numbers
    of pieces, and for nesting that is uneven or empty.
    """
    shape = _shape(texts, "texts")
    flat: list[_Tokens | None] = []
    pieces: set[int] = set()
    for text in _flattened(texts, shape):
        flat.append(None if text is None else _tokenise(text, wordpieces, context_length))
        if text is not None:
            pieces.add(1 if isinstance(text, str) else len(text))
    if len(pieces) > 1:
        raise TextError(
            f"the texts have {_joined_numbers(sorted(pieces))} pieces; all texts of one call need "
            "the same number, so that each has the same number of places for a context"
        )
    # A place that a ragged class leaves empty repeats a real text, so that its features are
    # finite; the first text of a class is always there.
    filled, last = [], next(tokens for tokens in flat if tokens is not None)
    for tokens in flat:
        last = tokens or last
        filled.append(last)
    width = max(len(tokens.ids) for tokens in filled)
    ids = [[*tokens.ids, *[wordpieces.pad] * (width - len(tokens.ids))] for tokens in filled]
    gaps = [tokens.gaps for tokens in filled]
    real = torch.tensor([tokens is not None for tokens in flat]).reshape(shape)
    return Prompts(
        tokens=torch.tensor(ids, dtype=torch.int64).reshape(*shape, width),
        lengths=torch.tensor([len(tokens.ids) for tokens in filled]).reshape(shape),
        gaps=torch.tensor(gaps, dtype=torch.int64).reshape(*shape, -1) if gaps[0] else None,
        mask=None if bool(real.all()) else real,
    )


@dataclass(frozen=True)
class _Tokens:
    ids: tuple[int, ...]
    gaps: tuple[int, ...]  # before which of `ids` each gap lies


def _tokenise(text: Text, wordpieces: Wordpieces, context_length: int) -> _Tokens:
    ids = [*wordpieces.start]
    gaps = []
    pieces = (text,) if isinstance(text, str) else text
    for i, piece in enumerate(pieces):
        if i:
            gaps.append(len(ids))
        goes_on = i > 0 and piece[:1].isalnum()
        ids.extend(wordpieces.encode(wordpieces.glue + piece if goes_on else piece))
    ids.extend(wordpieces.end)
    if len(ids) > context_length:
        raise TextError(
            f"the text {_quote(text)} has {len(ids)} tokens with start and end; the text tower "
            f"takes at most {context_length}: shorten it"
        )
    return _Tokens(tuple(ids), tuple(gaps))


def readable_tokens(
    wordpieces: Wordpieces, vectors: torch.Tensor, ids: Sequence[int] | None = None
) -> tuple[list[str], torch.Tensor]:
    """Tokens that read as something with a letter, and their rows of `vectors` (V, W).

    ids: the tokens to look at, by default all. Special tokens read as nothing; of tokens that read
    alike (at a word's end and within one) that is kept which the word by itself is made of.
    """
    found: dict[str, int] = {}
    special = {*wordpieces.start, *wordpieces.end, wordpieces.pad}
    for token in range(len(vectors)) if ids is None else ids:
        text = "" if token in special else wordpieces.decode([token]).strip()
        if text.isprintable() and any(char.isalpha() for char in text):
            if text in found and wordpieces.encode(text) != [token]:
                continue
            found[text] = token
    rows = torch.tensor(list(found.values()), dtype=torch.int64, device=vectors.device)
    return list(found), vectors[rows]


def is_text(texts: Texts) -> bool:
    """Whether this is one text: a str, or a tuple of str (pieces). Lists hold several texts."""
    return isinstance(texts, str) or (
        type(texts) is tuple and len(texts) > 0 and all(isinstance(t, str) for t in texts)
    )


def _shape(texts: Any, place: str) -> tuple[int, ...]:
    """*N: as long in each dimension as the longest part there."""
    if is_text(texts):
        return ()
    if not isinstance(texts, Sequence):
        raise TextError(
            f"{place} is of type {type(texts).__name__}; expected a str, a tuple of pieces, or a "
            "list of these"
        )
    if not texts:
        raise TextError(f"{place} is empty; at least one text is needed there")
    inner = [_shape(part, f"{place}[{i}]") for i, part in enumerate(texts)]
    for i, part in enumerate(inner):
        if len(part) != len(inner[0]):
            raise TextError(
                f"{place}[{i}] is nested {len(part)} deep and {place}[0] {len(inner[0])} deep; "
                "nest all texts alike"
            )
    return (len(texts), *(max(sizes) for sizes in zip(*inner, strict=True)))


def _flattened(texts: Any, shape: tuple[int, ...]) -> Iterator[Text | None]:
    """The texts in order, None for each place that a ragged part leaves empty."""
    if not shape:
        yield texts
        return
    for i in range(shape[0]):
        if texts is not None and i < len(texts):
            yield from _flattened(texts[i], shape[1:])
        else:
            yield from _empty_places(shape[1:])


def _empty_places(shape: tuple[int, ...]) -> Iterator[None]:
    total = 1
    for size in shape:
        total *= size
    for _ in range(total):
        yield None


def _quote(text: Text) -> str:
    whole = text if isinstance(text, str) else " … ".join(text)
    return f"'{whole}'" if len(whole) <= 200 else f"'{whole[:200]}…'"


def _joined_numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
