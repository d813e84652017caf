"""Texts to tokens: pieces and gaps, nesting, ragged classes, and what is refused."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.backbones.clips import random_backbone
from vipbench.api import TextError
from vipbench.backbones.open_clip import tiny_clip

BACKBONE = random_backbone()


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_texts_are_tokenised_as_open_clip_does(texts: list[str]) -> None:
    prompts = BACKBONE.embed(texts)
    expected = open_clip.tokenize(texts)
    width = prompts.tokens.shape[-1]
    assert torch.equal(prompts.tokens, expected[:, :width])
    assert not expected[:, width:].any()
    # Nothing has a larger id than the end token, and 0 is also a token ("!").
    assert torch.equal(prompts.lengths, expected.argmax(-1) + 1)
    assert prompts.gaps is None
    assert prompts.mask is None


@pytest.mark.parametrize(
    ("text", "gaps"),
    [
        (("", "mole."), [1]),
        (("", "dark mole", "."), [1, 3]),
        (("mole", "."), [2]),
        (("a dark red mole", "", "."), [5, 5]),
    ],
)
def test_gaps_of_the_positions(text: Any, gaps: list[int]) -> None:
    prompts = BACKBONE.embed(text)
    whole = " ".join(piece for piece in text if piece)
    assert prompts.shape == ()
    assert torch.equal(prompts.tokens, open_clip.tokenize(whole)[0, : prompts.tokens.shape[-1]])
    assert prompts.gaps is not None
    assert prompts.gaps.tolist() == gaps


def test_nested_texts() -> None:
    prompts = BACKBONE.embed([["a.", "b c d."], ["e f.", "g."]])
    assert prompts.shape == (2, 2)
    assert prompts.mask is None
    assert prompts.lengths.tolist() == [[4, 6], [5, 4]]
    # A tuple whose items are not all strings holds several texts; of strings, it is one text.
    assert BACKBONE.embed((["a."], ["b."], ["c."])).shape == (3, 1)
    assert BACKBONE.embed(("a.", "b.")).shape == ()


def test_ragged_texts_are_padded_with_real_ones() -> None:
    prompts = BACKBONE.embed([[("", "a.")], [("", "b."), ("", "c."), ("", "d.")]])
    assert prompts.mask is not None
    assert prompts.mask.tolist() == [[True, False, False], [True, True, True]]
    assert torch.equal(prompts.tokens[0, 1], prompts.tokens[0, 0])
    assert prompts.gaps is not None
    assert prompts.gaps.shape == (2, 3, 1)


def test_slices_keep_everything_together() -> None:
    prompts = BACKBONE.embed([[("", "a.")], [("", "b."), ("", "c d e.")]])
    last = prompts[1:]
    assert last.shape == (1, 2)
    assert last.mask is not None
    assert last.mask.all()


def test_longest_text_that_fits() -> None:
    fits = "x " * 75
    assert BACKBONE.embed(fits).lengths.item() == 77
    with pytest.raises(TextError, match=r"'x x x.* 78 .* 77"):
        BACKBONE.embed(["nevus.", fits + "x"])
    with pytest.raises(TextError, match=r"'start … x x.* 79 "):
        BACKBONE.embed([[("", "a")], [("start", fits + "x")]])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "empty"),
        ([["a."], []], r"texts\[1\] .*empty"),
        ([["a."], "b."], r"texts\[1\] .* 0 .*texts\[0\] 1"),
        (["a.", ("", "b.")], "1 .*2 "),
        ([("", "b."), ("", "b", ".")], "2 .*3 "),
        (["a.", 7], r"texts\[1\] .*int"),
        (None, "NoneType"),
        ((), "empty"),
    ],
)
def test_texts_that_are_refused(texts: Any, message: str) -> None:
    with pytest.raises(TextError, match=message):
        BACKBONE.embed(texts)


def test_words_to_start_a_context_from() -> None:
    ids = open_clip.tokenize("a photo of a")[0, 1:5]
    words = BACKBONE.embed_words("a photo of a")
    assert torch.equal(words, BACKBONE._model.token_embedding.weight[ids])
    words.zero_()
    assert BACKBONE.embed_words("a photo of a").abs().sum() > 0
    with pytest.raises(TextError, match="'  '"):
        BACKBONE.embed_words("  ")


def test_the_vocabulary_is_every_readable_token_that_training_saw() -> None:
    tokens, vectors = BACKBONE.vocabulary()
    assert len(tokens) == len(set(tokens)) == len(vectors) > 30_000
    assert all(token.isprintable() and any(map(str.isalpha, token)) for token in tokens)
    assert "<|endoftext|>" not in "".join(tokens)
    # A word of one token has the vector that a context starts from.
    for word in ("photo", "dark", "border"):
        (row,) = BACKBONE.embed_words(word)
        assert torch.equal(row, vectors[tokens.index(word)])
    few, rows = tiny_clip(None).vocabulary()
    assert "border" in few
    assert "photo" in few
    assert "pneumonia" not in few
    assert rows.shape == (len(few), 64)
