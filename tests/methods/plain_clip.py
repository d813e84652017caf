"""Prompt and low-rank methods written down once more, from their published formulas alone, on
open_clip's own blocks: 77-token texts, one by one, no packing, no tap, no engine.

Shapes as everywhere: C classes, D joint width, W and V the widths of the two towers, M rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

Loss = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]


class PlainClip:
    """open_clip's towers, block by block."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False)
        self.scale = model.logit_scale.exp().detach()

    def words(self, text: str) -> Tensor:
        """Token embeddings (n,W) without start and end."""
        ids = open_clip.tokenize([text])[0]
        return self.model.token_embedding(ids[1 : int(ids.argmax())]).detach()

    def texts(
        self, texts: Sequence[str], context: Tensor | None = None, deep: Tensor | None = None
    ) -> Tensor:
        """Features (C,D), not normalised. context (M,W) or (C,M,W) behind the start token; deep
        (d-1,M,W) takes its place before blocks 1 to d-1."""
        m, ids = self.model, open_clip.tokenize(list(texts))
        x = m.token_embedding(ids)  # (C,77,W)
        ends = ids.argmax(-1)
        rows = 0
        if context is not None:
            rows = context.shape[-2]
            middle = context.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], middle, x[:, 1 : 77 - rows]], 1)
            ends = ends + rows
        x = x + m.positional_embedding
        for i, block in enumerate(m.transformer.resblocks):
            if deep is not None and 1 <= i <= len(deep):
                x = torch.cat([x[:, :1], deep[i - 1].expand(len(x), -1, -1), x[:, 1 + rows :]], 1)
            x = block(x, attn_mask=m.attn_mask)
        return m.ln_final(x)[torch.arange(len(x)), ends] @ m.text_projection

    def images(self, pixels: Tensor, deep: Tensor | None = None) -> Tensor:
        """Features (B,D), not normalised. deep (d,M,V): row 0 is appended before the first
        normalisation, row i takes the last M rows' place before block i."""
        v = self.model.visual
        x = v.conv1(pixels).flatten(2).mT
        first = v.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + v.positional_embedding
        if deep is not None and len(deep):
            x = torch.cat([x, deep[0].expand(len(x), -1, -1)], 1)
        x = v.ln_pre(x)
        for i, block in enumerate(v.transformer.resblocks):
            if deep is not None and 1 <= i < len(deep):
                kept = x[:, : x.shape[1] - deep.shape[-2]]
                x = torch.cat([kept, deep[i].expand(len(x), -1, -1)], 1)
            x = block(x)
        return v.ln_post(x[:, 0]) @ v.proj

    def with_weights(self, changed: dict[str, Tensor], run: Callable[[], Tensor]) -> Tensor:
        """`run` with other weights in the model, differentiable in them."""

        class Inside(torch.nn.Module):
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model = model

            def forward(self) -> Tensor:
                return run()

        names = {f"model.{name}": value for name, value in changed.items()}
        return functional_call(Inside(self.model), names, ())

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """The temperature times the cosine: (B,D), (C,D) -> (B,C)."""
        return self.scale * F.normalize(images, dim=-1) @ F.normalize(classes, dim=-1).T


def sgd(
    parameters: Sequence[Tensor], loss: Loss, x: Tensor, labels: Tensor,
    *, lr: float, epochs: int, batch: int, combine: Callable[..., Tensor] | None = None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:  # fmt: skip
    """Prompt SGD on batches in stored order, the incomplete last one dropped."""
    optimizer = torch.optim.SGD(list(parameters), lr=lr, momentum=0.9, weight_decay=5e-4)
    batch = min(batch, len(x))
    for epoch in range(epochs):
        rate = 1e-5 if epoch == 0 else lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        optimizer.param_groups[0]["lr"] = rate
        for start in range(0, len(x) - batch + 1, batch):
            optimizer.zero_grad()
            found = loss(x[start : start + batch], labels[start : start + batch])
            if isinstance(found, tuple):
                assert combine is not None
                for p in parameters:
                    grads = [torch.autograd.grad(one, p, retain_graph=True)[0] for one in found]
                    p.grad = combine(*grads)
            else:
                found.backward()
            optimizer.step()
        after_epoch(epoch)
