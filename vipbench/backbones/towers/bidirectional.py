"""Text towers that look both ways, or pool in ways of their own: BERT, SigLIP, CoCa.

Shapes: *N texts, T rows of a sequence, W width, D embedding width; `*` any leading dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vipbench.api import Tap, UnsupportedError
from vipbench.backbones.towers.layers import Layer, read_layers
from vipbench.backbones.towers.masks import additive, queries_dtype

_BERTS = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")


class TextSide(ABC):
    """What of a text tower is not in its tokens.

    words: the token embedding. context_length: the most rows of a text. layers: number of blocks.
    """

    words: nn.Embedding
    context_length: int
    layers: int

    @abstractmethod
    def run(self, x: Tensor, lengths: Tensor, tap: Tap | None) -> Tensor:
        """x (*,T,W) token embeddings with the context among them, rows beyond a text's own any;
        lengths int64, of the shape that * has or the last part of it: rows that a text really
        has -> features (*,D)."""


class BertSide(TextSide):
    """A BERT-like encoder with a mask over the padding.

    pool: last hidden rows (*,T,W) and lengths -> (*,W), a projection follows.
    """

    def __init__(
        self,
        model: Any,
        pool: Callable[[Tensor, Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        context_length: int | None = None,
    ) -> None:
        if type(model).__name__ not in _BERTS:
            raise UnsupportedError(
                f"a text tower of type {type(model).__name__}; known are {', '.join(_BERTS)}, "
                "CLIP and SigLIP"
            )
        self._embeddings = model.embeddings
        self.words = model.embeddings.word_embeddings
        self._layers: list[Layer] = read_layers(model.encoder.layer, "text")
        self.layers = len(self._layers)
        # RoBERTa counts positions from behind the padding token's number.
        self._first = (
            0 if type(model).__name__ == "BertModel" else int(self.words.padding_idx or 0) + 1
        )
        most = len(self._embeddings.position_embeddings.weight) - self._first
        self.context_length = min(most, context_length or most)
        self._pool, self._project = pool, project

    def run(self, x: Tensor, lengths: Tensor, tap: Tap | None) -> Tensor:
        """See `TextSide.run`."""
        e = self._embeddings
        rows = x.shape[-2]
        x = x + e.token_type_embeddings.weight[0]
        x = e.LayerNorm(x + e.position_embeddings.weight[self._first : self._first + rows])
        lengths = lengths.expand(x.shape[:-2])
        seen: Tensor | None = None
        for layer in self._layers:
            if tap is not None:
                x = tap.tokens("text", layer.index, x)
            if seen is None or seen.shape[-1] != x.shape[-2]:
                real = _real(lengths, rows, x.shape[-2]).reshape(-1, 1, x.shape[-2])
                seen = additive(real, queries_dtype(x))
            x = layer(x, seen, tap)
        return self._project(self._pool(x, lengths))


def _real(lengths: Tensor, rows: int, total: int) -> Tensor:
    """(*N, total) bool: which rows are looked at: a text's own, and what a tap put behind."""
    place = torch.arange(total, device=lengths.device)
    return (place < lengths.unsqueeze(-1)) | (place >= rows)


def first_row(x: Tensor, lengths: Tensor) -> Tensor:
    """(*,T,W) -> (*,W): the start token's row."""
    return x[..., 0, :]


def mean_row(x: Tensor, lengths: Tensor) -> Tensor:
    """(*,T,W) -> (*,W): the mean of a text's own rows."""
    real = torch.arange(x.shape[-2], device=x.device) < lengths.unsqueeze(-1)
    return (x * real.unsqueeze(-1)).sum(-2) / lengths.unsqueeze(-1)


class SiglipSide(TextSide):
    """SigLIP's text encoder: always the full length, padding seen like words, last row pooled."""

    def __init__(self, model: Any, pad: int) -> None:
        self._model, self._pad = model, pad
        self.words = model.embeddings.token_embedding
        self._layers: list[Layer] = read_layers(model.encoder.layers, "text")
        self.layers = len(self._layers)
        self.context_length = len(model.embeddings.position_embedding.weight)

    def run(self, x: Tensor, lengths: Tensor, tap: Tap | None) -> Tensor:
        """See `TextSide.run`."""
        model, rows = self._model, self.context_length
        padding = self.words.weight[self._pad]
        own = torch.arange(x.shape[-2], device=x.device) < lengths.unsqueeze(-1)
        x = torch.where(own.unsqueeze(-1), x, padding)
        rest = padding.expand(*x.shape[:-2], rows - x.shape[-2], -1)
        x = torch.cat([x, rest], -2) + model.embeddings.position_embedding.weight
        for layer in self._layers:
            if tap is not None:
                x = tap.tokens("text", layer.index, x)
            x = layer(x, None, tap)
        features: Tensor = model.head(model.final_layer_norm(x[..., rows - 1, :]))
        return features


class CocaSide(TextSide):
    """The text tower of open_clip's CoCa: causal, with a class row behind the text that is pooled.

    What the class row may look at: the text's rows and itself; in the published checkpoints
    (`correct_cls_mask` false) the mask stands one place off, so that it looks at the first row
    of padding instead of itself, which is kept here, since they were trained so.
    """

    def __init__(self, text: Any) -> None:
        if text.attn_mask is None or text.cls_emb is None:
            raise UnsupportedError("a CoCa text tower without causal mask or class token")
        self._text = text
        self.words = text.token_embedding
        self._layers: list[Layer] = read_layers(text.transformer.resblocks, "text")
        self.layers = len(self._layers)
        self.context_length = len(text.positional_embedding) - 1

    def run(self, x: Tensor, lengths: Tensor, tap: Tap | None) -> Tensor:
        """See `TextSide.run`."""
        text, most = self._text, self.context_length
        lengths = lengths.expand(x.shape[:-2])
        padding = self.words.weight[text.pad_id]
        own = torch.arange(x.shape[-2], device=x.device) < lengths.unsqueeze(-1)
        x = torch.where(own.unsqueeze(-1), x, padding)
        if x.shape[-2] < most:
            x = torch.cat([x, padding.expand(*x.shape[:-2], 1, -1)], -2)
        rows = x.shape[-2]
        positions = text.positional_embedding
        x = x + positions[:rows]
        last = (text.cls_emb + positions[most]).expand(*x.shape[:-2], 1, -1)
        x = torch.cat([x, last], -2)
        seen = additive(self._seen(lengths.reshape(-1, 1), rows), queries_dtype(x))
        for layer in self._layers:
            if tap is not None:
                x = tap.tokens("text", layer.index, x)
            x = layer(x, seen, tap)
        x = text.ln_final(x[..., rows, :])
        projection = text.text_projection
        features: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return features

    def _seen(self, lengths: Tensor, rows: int) -> Tensor:
        """lengths (n,1) -> (n, rows + 1, rows + 1) bool: causal, and the class row's own mask."""
        place = torch.arange(rows + 1, device=lengths.device)
        if self._text.correct_cls_mask:
            last = (place < lengths) | (place == rows)
        else:
            at_end = torch.where(lengths == self.context_length, rows, lengths)
            last = (place < lengths) | (place == at_end)
        causal = (place <= place.unsqueeze(-1)).expand(len(lengths), -1, -1)
        return torch.cat([causal[:, :rows], last.unsqueeze(1)], 1)
