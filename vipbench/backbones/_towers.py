"""Forward passes through the frozen transformer blocks of open_clip's towers.

They are written with plain tensor operations, so that a tap can look inside and torch.func can
transform them. Shapes: T rows of a sequence, W width of the tower, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.api import Tap, Tower, UnsupportedError


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None) -> Tensor:
    """Multi-head attention: q (*,Q,W) over k, v (*,T,W) -> (*,Q,W).

    allowed: bool, broadcasting to (*,Q,T); False where a row may not look. None: everywhere.

    Spelt out, since the fused kernels have no batching rule on the CPU.
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-3, -2) for t in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed.unsqueeze(-3), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


@dataclass(frozen=True)
class Block:
    """One residual attention block of open_clip, read-only."""

    module: Any
    tower: Tower
    layer: int

    def __post_init__(self) -> None:
        if not isinstance(self.module, open_clip.transformer.ResidualAttentionBlock):
            raise UnsupportedError(
                f"block {self.layer} of the {self.tower} tower is a "
                f"{type(self.module).__name__}; only plain residual attention blocks can be run "
                "with a learned context or a tap"
            )

    @property
    def heads(self) -> int:
        """H."""
        return int(self.module.attn.num_heads)

    def __call__(
        self, x: Tensor, allowed: Tensor | None, tap: Tap | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """x (*,T,W) -> (*,T,W), or with `rows` (*R, E) int64 only those rows: (*,E,W).

        allowed: bool (*,T,T) broadcasting, as `attend` takes it; with `rows` its rows are
        picked likewise.
        """
        attn = self.module.attn
        h = self.module.ln_1(x)
        width = h.shape[-1]
        if tap is None and rows is None:
            q, k, v = F.linear(h, attn.in_proj_weight, attn.in_proj_bias).split(width, -1)
        else:
            h_q = h if rows is None else take_rows(h, rows)
            weights = attn.in_proj_weight.split(width)
            biases = attn.in_proj_bias.split(width)
            q, k, v = (
                self._tapped(tap, name, source, F.linear(source, weight, bias))
                for name, source, weight, bias in zip(
                    "qkv", (h_q, h, h), weights, biases, strict=True
                )
            )
        if rows is not None:
            x = take_rows(x, rows)
            if allowed is not None:
                allowed = allowed[rows] if allowed.dim() == 2 else take_rows(allowed, rows)
        a = attend(q, k, v, self.heads, allowed)
        x = x + self.module.ls_1(self._tapped(tap, "o", a, attn.out_proj(a)))
        h = self.module.ln_2(x)
        mlp = self.module.mlp
        a = mlp.gelu(self._tapped(tap, "fc1", h, mlp.c_fc(h)))
        return x + self.module.ls_2(self._tapped(tap, "fc2", a, mlp.c_proj(a)))

    def _tapped(self, tap: Tap | None, name: str, x: Tensor, y: Tensor) -> Tensor:
        return y if tap is None else tap.linear(self.tower, self.layer, name, x, y)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x (*,T,·), rows (*R, E) int64, *R the last dimensions of * -> (*,E,·)."""
    index = rows.expand(*x.shape[:-2], rows.shape[-1]).unsqueeze(-1)
    return x.gather(-2, index.expand(*index.shape[:-1], x.shape[-1]))


class TextTower:
    """The text side of an open_clip CLIP or CustomTextCLIP.

    Raises UnsupportedError for text towers built in another way, naming what is different.
    """

    def __init__(self, model: nn.Module) -> None:
        text: Any = model.text if isinstance(model, open_clip.CustomTextCLIP) else model
        if not isinstance(text, open_clip.CLIP | open_clip.transformer.TextTransformer):
            raise UnsupportedError(f"a text tower of type {type(text).__name__} cannot be run yet")
        if isinstance(text, open_clip.transformer.TextTransformer):
            if text.cls_emb is not None or text.use_pad_mask:
                raise UnsupportedError("a text tower with a class token or a padding mask")
            self.pool: str = text.pool_type
        else:
            self.pool = text.text_pool_type
        if self.pool not in ("argmax", "eos", "first", "last"):
            raise UnsupportedError(f"a text tower with '{self.pool}' pooling")
        self._text = text
        self.causal = text.attn_mask is not None
        self.blocks = [Block(b, "text", i) for i, b in enumerate(text.transformer.resblocks)]

    @property
    def positions(self) -> Tensor:
        """Positional embedding (context_length, W)."""
        return self._text.positional_embedding  # type: ignore[no-any-return]

    @property
    def words(self) -> nn.Embedding:
        """Token embedding, (vocabulary, W)."""
        return self._text.token_embedding  # type: ignore[no-any-return]

    @property
    def cut(self) -> bool:
        """Whether a text may be cut behind its end token without changing its features."""
        return self.causal and self.pool in ("argmax", "eos")

    def head(self, x: Tensor) -> Tensor:
        """The pooled rows (*, W), after all blocks -> features (*, D)."""
        x = self._text.ln_final(x)
        projection = self._text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def plain(self, x: Tensor, end: Tensor, tap: Tap | None = None) -> Tensor:
        """x (*, T, W) embedded rows with positions; end (*E,) int64, the pooled row of each
        text, *E the last dimensions of * -> (*, D). Each text is a sequence of its own."""
        for block in self.blocks:
            if tap is not None:
                x = tap.tokens("text", block.layer, x)
            last = tap is None and block.layer == len(self.blocks) - 1
            x = block(x, self._allowed(x), tap, end.unsqueeze(-1) if last else None)
        if tap is not None:
            x = take_rows(x, end.unsqueeze(-1))
        return self.head(x.squeeze(-2))

    def _allowed(self, x: Tensor) -> Tensor | None:
        if not self.causal:
            return None
        return torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()


class VisionTower:
    """The image side. Any tower gives features; only a plain vision transformer takes taps."""

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise UnsupportedError(f"an image tower for {height}x{width} images; only squares work")
        self.image_size = int(height)
        vit = isinstance(visual, open_clip.transformer.VisionTransformer)
        self.width: int | None = visual.conv1.out_channels if vit else None
        self.layers: int = len(visual.transformer.resblocks) if vit else 0

    def tapped(self, pixels: Tensor, tap: Tap) -> Tensor:
        """(B,3,H,H) -> (B,D) with `tap` asked before and inside every block."""
        visual = self._visual
        if self.width is None or visual.attn_pool is not None or visual.pool_type == "none":
            raise UnsupportedError(
                f"an image tower of type {type(visual).__name__} has no plain transformer blocks; "
                "this method needs a vision transformer"
            )
        blocks = [Block(b, "vision", i) for i, b in enumerate(visual.transformer.resblocks)]
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        x = x + visual.positional_embedding
        own = x.shape[1]
        for block in blocks:
            x = tap.tokens("vision", block.layer, x)
            if block.layer == 0:
                x = visual.ln_pre(x)
            x = block(x, None, tap)
        # Rows that the tap appended take part in attention, not in the pooling.
        x = x[:, :own]
        if visual.final_ln_after_pool:
            x = visual.ln_post(self._pooled(x))
        else:
            x = self._pooled(visual.ln_post(x))
        return x if visual.proj is None else x @ visual.proj

    def _pooled(self, x: Tensor) -> Tensor:
        return x[:, 1:].mean(1) if self._visual.pool_type == "avg" else x[:, 0]
