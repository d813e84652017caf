"""Any pair of an image side and a text side behind the Backbone contract.

CLIPs of open_clip's own classes go through `ClipBackbone`, whose text pass is faster; this one
takes what is built otherwise. Shapes: B images, C classes, M context vectors, S tokens, T rows of
a sequence, W text width, D embedding width; `*L`, `*N` any leading dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from vipbench.api import Backbone, Prompts, Tap, TextError, Texts
from vipbench.backbones.towers.bidirectional import TextSide
from vipbench.backbones.towers.clip import digest_weights
from vipbench.backbones.towers.image import ImageSide
from vipbench.backbones.towers.layout import context_tokens, lay_out
from vipbench.backbones.towers.preprocess import Preprocess, Transform, evaluation_transform
from vipbench.backbones.towers.text import take_rows
from vipbench.backbones.towers.tokens import Wordpieces, embed_texts, readable_tokens
from vipbench.backbones.towers.vmap import folded


class DualBackbone(Backbone):
    """An image side and a text side, frozen.

    model: holds all weights of both, fp32. facts: what else a feature depends on, as JSON.
    preprocess: see `evaluation_transform`; the size is the image side's own.
    revisions: of what read the files, for the fingerprint.
    memory_budget: bytes that `encode_text` may keep for the gradient; set it to what is free.
    """

    memory_budget: int = 1 << 30

    def __init__(
        self,
        model: nn.Module,
        *,
        images: ImageSide,
        texts: TextSide,
        dim: int,
        logit_scale: float,
        name: str,
        wordpieces: Wordpieces,
        preprocess: Preprocess,
        facts: Mapping[str, Any],
        licence: str = "unknown",
        citation: str = "",
        revisions: Mapping[str, int] | None = None,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._images, self._texts, self._wordpieces = images, texts, wordpieces
        self._transform, prepared = evaluation_transform(preprocess, images.image_size)
        self.training_precision: Literal["fp32", "bf16"] = "fp32"
        self.name, self.licence, self.citation = name, licence, citation
        self.dim, self.logit_scale = dim, logit_scale
        self.width = int(texts.words.embedding_dim)
        self.text_layers, self.context_length = texts.layers, texts.context_length
        self.image_size = images.image_size
        self.vision_width, self.vision_layers = images.width, len(images.layers)
        self.weights_sha256 = digest_weights(model)
        known = {
            "facts": facts,
            "preprocess": prepared,
            "wordpieces": wordpieces.identity,
            "context_length": texts.context_length,
            "weights": self.weights_sha256,
            **({"revisions": dict(revisions)} if revisions else {}),
        }
        text = json.dumps(known, sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the towers live."""
        return self._texts.words.weight.device

    def to(self, device: torch.device | str) -> None:
        """Move the towers."""
        self._model.to(device)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The checkpoint's evaluation transform: RGB image -> (3,H,H) float32."""
        return self._transform(image)

    def preprocess_alone(self) -> Transform:
        """See `ImageBackbone.preprocess_alone`."""
        return self._transform

    def encode_image(self, pixels: Tensor, tap: Tap | None = None) -> Tensor:
        """(B,3,H,H) -> (B,D). Raises UnsupportedError for a tap where the tower is not a plain
        vision transformer."""
        return self._images(pixels, tap)

    def trainable_copy(self, pretrained: bool = True) -> nn.Module:
        """The image tower (B,3,H,H) -> (B,D), to be trained; new weights come from torch's global
        generator: fork and seed that around the call."""
        return self._images.trainable_copy(pretrained, self.device)

    def embed(self, texts: Texts) -> Prompts:
        """See `Backbone.embed`."""
        return embed_texts(texts, self._wordpieces, self.context_length).to(self.device)

    def embed_words(self, words: str) -> Tensor:
        """Token embeddings (n, W) of `words`. Raises TextError where there are none."""
        ids = self._wordpieces.encode(words)
        if not ids:
            raise TextError(f"the words '{words}' contain no token to start a context from")
        return self._texts.words.weight[torch.tensor(ids, device=self.device)].clone()

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """See `Backbone.unknown_words`."""
        return self._wordpieces.unknown_words(text)

    def vocabulary(self) -> tuple[list[str], Tensor]:
        """See `Backbone.vocabulary`."""
        return readable_tokens(self._wordpieces, self._texts.words.weight)

    def encode_text(
        self, prompts: Prompts, context: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """See `Backbone.encode_text`. Without `context`, the gaps of `prompts` stay empty."""
        m = context_tokens(prompts, context, self.width, self.context_length, self._wordpieces)
        layout = lay_out(prompts, m)
        lengths = layout.end + 1  # (*N,)
        source = layout.source[..., : layout.rows]
        words = self._texts.words(prompts.tokens)  # (*N,S,W)
        if context is None or m == 0:
            x = take_rows(words, source)
            if tap is not None:
                return self._texts.run(x, lengths, tap)
            with torch.no_grad():
                frozen = self._in_parts(lengths, False, x.reshape(-1, *x.shape[-2:]))
                return frozen.reshape(*prompts.shape, self.dim)
        shape = torch.broadcast_shapes(prompts.shape, context.shape[:-2])  # *L

        def rows_of(context: Tensor) -> Tensor:
            """(*F,*L,M,W) or shorter -> (*F,*L,T,W)."""
            lead = torch.broadcast_shapes(context.shape[:-2], shape)
            every = [t.expand(*lead, *t.shape[-2:]) for t in (words, context)]
            return take_rows(torch.cat(every, -2), source.expand(*shape, -1))

        if tap is not None:
            return self._texts.run(rows_of(context), lengths.expand(shape), tap)
        flat = lengths.expand(shape).flatten()

        def run(contexts: Tensor) -> Tensor:
            """(F,*L',M,W), F of them -> (F,texts,D)."""
            x = rows_of(contexts).flatten(0, -3)
            features = self._in_parts(flat, True, x)
            return features.reshape(len(contexts), -1, self.dim)

        lead = [1] * (len(shape) + 2 - context.dim())
        full = context.reshape(1, *lead, *context.shape)
        half = self.training_precision == "bf16" and torch.is_grad_enabled()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            features = folded(run, full)
        whole: Tensor = features.float().reshape(*shape, self.dim)
        return whole

    def _in_parts(self, lengths: Tensor, gradient: bool, x: Tensor) -> Tensor:
        """x (F·n,T,W), lengths (*N) of n texts -> (F·n,D), in parts that the memory allows; with
        `gradient` the values inside a part are computed again in the backward pass."""
        lengths = lengths.flatten().repeat(len(x) // lengths.numel())
        row_bytes = 4 * self.text_layers * (12 * self.width + x.shape[-2])
        texts = max(1, self.memory_budget // 4 // (row_bytes * x.shape[-2]))
        recompute = gradient and torch.is_grad_enabled()
        if recompute and len(x) <= 4 * texts:
            texts, recompute = len(x), False
        parts = []
        for some, own in zip(x.split(texts), lengths.split(texts), strict=True):
            fn = partial(_run_part, self._texts, own)
            parts.append(folded(fn, some, keep=False) if recompute else fn(some))
        return torch.cat(parts)


def _run_part(texts: TextSide, lengths: Tensor, x: Tensor) -> Tensor:
    return texts.run(x, lengths, None)
