"""Forward passes through the frozen transformer blocks of open_clip's towers.

They are written with plain tensor operations, so that a tap can look inside and torch.func can
transform them. Shapes: T rows of a sequence, W width of the tower, H heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.api import Tap, Tower, UnsupportedError
from vipbench.backbones.towers.linear import constant_linear, on_cpu
from vipbench.backbones.towers.masks import causal, repeated
from vipbench.backbones.towers.packing import Packed, Packing
from vipbench.backbones.towers.vmap import folded

Function = Callable[[Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Tensor | None) -> Tensor:
    """Multi-head attention: q (n,Q,W) over k, v (n,T,W) -> (n,Q,W).

    seen: (n or 1,Q,T) or (Q,T), what is added to the attention, of the queries' type (see
    `_masks`). None: nothing.
    """
    q, k, v = (t.reshape(*t.shape[:-1], heads, -1).transpose(1, 2) for t in (q, k, v))
    mask = seen.unsqueeze(1) if seen is not None and seen.dim() == 3 else seen
    result: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return result.transpose(1, 2).flatten(2)


def is_kind(module: nn.Module, *names: str) -> bool:
    """Whether it is of a class of one of these names. By name, since asking for open_clip's own
    classes would import it, and tiny-clip has such classes of its own (`clip_modules`)."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


@dataclass(frozen=True)
class Block:
    """One residual attention block of open_clip, read-only.

    origin: the block in fp32, where `module` is a copy of it in half precision.
    """

    module: Any
    tower: Tower
    layer: int
    origin: Any = None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_kind(self.module, "ResidualAttentionBlock"):
            raise UnsupportedError(
                f"block {self.layer} of the {self.tower} tower is a "
                f"{type(self.module).__name__}; only plain residual attention blocks can be run "
                "with a learned context or a tap"
            )

    @property
    def heads(self) -> int:
        """H."""
        return int(self.module.attn.num_heads)

    def packed(self, x: Tensor, seen: Tensor, rows: Tensor | None = None) -> Tensor:
        """x (n,R,W) -> (n,R,W), or with `rows` (n,E) int64 only those rows: (n,E,W).

        seen (n or 1,R,R), with `rows` (n or 1,E,R): what is added to a row's attention to row j,
        0 or -inf. Plain tensors only, no torch.func.
        """
        m, attn = self.module, self.module.attn
        # Projections may be in half precision; the residual stream and its norms never are.
        half, h = attn.in_proj_weight.dtype, m.ln_1(x)
        project: Callable[..., Tensor] = constant_linear
        if self.origin is not None and on_cpu(x):
            # Half-precision attention is slower there than fp32's, not faster; and it is to queries
            # and keys in half precision that a trained context is most sensitive.
            project, attn = partial(constant_linear, rounded=True), self.origin.attn
        else:
            h = h.to(half)
        weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, h.shape[-1]
        if rows is None:
            q, k, v = project(h, weight, bias).chunk(3, -1)
        else:
            k, v = project(h, weight[width:], bias[width:]).chunk(2, -1)
            q = project(take_rows(h, rows), weight[:width], bias[:width])
            x = take_rows(x, rows)
        mixed = attend(q, k, v, self.heads, seen).to(half)
        x = x + m.ls_1(constant_linear(mixed, m.attn.out_proj.weight, m.attn.out_proj.bias))
        first, activate, second = self._network
        x = x + m.ls_2(second(activate(first(m.ln_2(x).to(half)))))
        return x

    def __call__(self, x: Tensor, forwards: bool, tap: Tap | None = None) -> Tensor:
        """x (*,T,W) -> (*,T,W), open to `tap` and to torch.func. forwards: a row looks at no
        later one."""
        m, attn = self.module, self.module.attn
        h = m.ln_1(x)
        q, k, v = (
            self._tapped(tap, name, h, F.linear(h, weight, bias))
            for name, weight, bias in zip(
                "qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True
            )
        )
        a = folded(
            lambda q, k, v: attend(
                q, k, v, self.heads, causal(q.shape[-2], q) if forwards else None
            ),
            *(t.reshape(-1, *t.shape[-2:]) for t in (q, k, v)),
        ).reshape(q.shape)
        x = x + m.ls_1(self._tapped(tap, "o", a, attn.out_proj(a)))
        h = m.ln_2(x)
        a = m.mlp.gelu(self._tapped(tap, "fc1", h, m.mlp.c_fc(h)))
        x = x + m.ls_2(self._tapped(tap, "fc2", a, m.mlp.c_proj(a)))
        return x

    @property
    def _network(self) -> tuple[Function, Function, Function]:
        """The layers of the feed-forward network and the activation between them."""
        mlp = self.module.mlp
        weight, bias, behind, activate = mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.gelu
        if is_kind(mlp.gelu, "QuickGELU"):
            # x·sigmoid(1.702 x) = silu(1.702 x) / 1.702: with the constants inside the weights, one
            # operation of the forward and of the backward pass does what three did.
            (weight, bias, behind), activate = self._scaled(weight.dtype), F.silu
        return (
            partial(constant_linear, weight=weight, bias=bias),
            activate,
            partial(constant_linear, weight=behind, bias=mlp.c_proj.bias),
        )

    def _scaled(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and bias of the first layer times 1.702, weight of the second divided by it; made
        again where those were written since."""
        exact = (self.origin or self.module).mlp
        parts = (exact.c_fc.weight, exact.c_fc.bias, exact.c_proj.weight)
        now = tuple(part._version for part in parts)
        if self._kept.get("made of") != now:
            first, bias, second = parts
            self._kept["scaled"] = tuple(
                t.detach().to(dtype) for t in (first * 1.702, bias * 1.702, second / 1.702)
            )
            self._kept["made of"] = now
        made: tuple[Tensor, Tensor, Tensor] = self._kept["scaled"]
        return made

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
        text: Any = model.text if is_kind(model, "CustomTextCLIP") else model
        if not is_kind(text, "CLIP", "TextTransformer"):
            raise UnsupportedError(f"a text tower of type {type(text).__name__} cannot be run yet")
        if is_kind(text, "TextTransformer"):
            if text.cls_emb is not None or text.use_pad_mask:
                raise UnsupportedError("a text tower with a class token or a padding mask")
            self.pool: str = text.pool_type
        else:
            self.pool = text.text_pool_type
        if self.pool not in ("argmax", "eos", "first", "last"):
            raise UnsupportedError(f"a text tower with '{self.pool}' pooling")
        self._text = text
        self.causal = text.attn_mask is not None
        self._half: list[Block] = []
        self.read_blocks()

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

    def read_blocks(self) -> None:
        """Read the blocks anew: what they keep of the weights lies where those did."""
        layers = self._text.transformer.resblocks
        self.blocks = [Block(module, "text", i) for i, module in enumerate(layers)]

    def prepare_half(self) -> None:
        """Copy the blocks with their projections in bf16, for `encode(…, half=True)`."""
        copies = copy.deepcopy([block.module for block in self.blocks])
        for module in copies:
            for part in (module.attn, module.mlp):
                part.to(torch.bfloat16)
        self._half = [
            Block(module, "text", block.layer, block.module)
            for module, block in zip(copies, self.blocks, strict=True)
        ]

    def pooled(self, end: Tensor) -> Tensor:
        """The row that stands for a text whose end token is in row `end` (*N,)."""
        if self.pool == "first":
            return torch.zeros_like(end)
        return torch.full_like(end, len(self.positions) - 1) if self.pool == "last" else end

    def head(self, x: Tensor) -> Tensor:
        """The pooled rows (*, W), after all blocks -> features (*, D)."""
        x = self._text.ln_final(x)
        projection = self._text.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return x

    def plain(self, x: Tensor, pooled: Tensor, tap: Tap | None = None) -> Tensor:
        """x (*,T,W) embedded rows with positions; pooled (*N,) int64, the row that stands for a
        text, *N the last dimensions of * -> (*,D). Each text is a sequence of its own."""
        for block in self.blocks:
            if tap is not None:
                x = tap.tokens("text", block.layer, x)
            x = block(x, self.causal, tap)
        return self.head(take_rows(x, pooled.unsqueeze(-1)).squeeze(-2))

    def encode(
        self, packed: Packed, contexts: Tensor | None, budget: int, half: bool = False
    ) -> Tensor:
        """Features (F,*L,D) of packed texts; contexts (F,V,W), V vectors each.

        budget: bytes that may be kept for the gradient. Beyond it, values are computed again,
        part by part, which takes half as long again. half: projections in bf16 where there is
        a gradient to be had (see `prepare_half`).
        """
        half = half and contexts is not None and contexts.requires_grad and torch.is_grad_enabled()
        blocks = self._half if half else self.blocks
        packing = packed.packing
        # What autograd keeps of a row in each block: the inputs of two normalisations, q, k, v,
        # the attention's result, the wide activation, and the row's share of the mask.
        r = packing.tokens.shape[1]
        row_bytes = 4 * len(self.blocks) * (10 * self.words.embedding_dim + r)
        part_rows = budget // 4 // row_bytes

        def run(contexts: Tensor) -> Tensor:
            recompute = torch.is_grad_enabled() and (
                len(contexts) * packing.rows * row_bytes > budget
            )
            results = []
            for some in torch.split(contexts, max(1, part_rows // r)):
                parts = []
                for part in packing.parts(part_rows // len(some)):
                    fn = partial(self.packed, blocks, part)
                    parts.append(folded(fn, some, keep=False) if recompute else fn(some))
                results.append(torch.cat(parts, 1))
            return torch.cat(results).index_select(1, packed.outputs.flatten())

        if contexts is None:
            with torch.no_grad():
                features = run(self.positions.new_empty(1, 0, self.words.embedding_dim))
        else:
            features = folded(run, contexts)
        return features.reshape(len(features), *packed.outputs.shape, features.shape[-1])

    def packed(self, blocks: list[Block], packing: Packing, contexts: Tensor) -> Tensor:
        """Features (F, P·E, D) of packed texts, contexts (F, V, W) their context vectors."""
        p, r = packing.tokens.shape
        x = self.words(packing.tokens).masked_fill(~packing.is_token.unsqueeze(-1), 0.0)
        x = (x + self.positions[packing.positions]).flatten(0, 1)
        n = len(contexts)
        x = x.expand(n, -1, -1).index_add(1, packing.slots, contexts[:, packing.vectors])
        x = x.reshape(n * p, r, -1)
        # As `Block.packed` has its queries.
        half = blocks[0].module.attn.in_proj_weight.dtype
        masks = packing.masks(x.dtype if on_cpu(x) else half)
        seen, of_ends = (repeated(mask, n) for mask in masks)
        ends = packing.ends.repeat(n, 1)
        for block in blocks[:-1]:
            x = block.packed(x, seen)
        features = self.head(blocks[-1].packed(x, of_ends, ends))
        return features.reshape(n, ends.numel() // n, features.shape[-1])
