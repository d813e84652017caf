"""What programs of the CoOp family do at each step, written plainly, to measure against.

Every step encodes its images with the frozen tower, embeds every prompt in 77 tokens, sends all 77
through the text tower, and trains one cell; nothing is kept between steps. The text tower's own
`transformer` and the image tower are open_clip's. Written for this purpose only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Plain:
    """The towers and the texts of one problem. symptoms: per class its texts; names: C names."""

    model: Any
    names: list[str]
    symptoms: list[list[str]]

    def prompts(self, texts: list[str], m: int) -> tuple[Tensor, Tensor]:
        """Token embeddings (T,77,W) with m places behind the start token, and end rows (T,)."""
        tokens = open_clip.SimpleTokenizer()([" ".join(["X"] * m + [text]) for text in texts])
        tokens = tokens.to(self.model.token_embedding.weight.device)
        with torch.no_grad():
            return self.model.token_embedding(tokens), tokens.argmax(-1)

    def text(self, embedded: Tensor, end: Tensor, context: Tensor) -> Tensor:
        """(T,77,W) with `context` (m,W) or (T,m,W) behind the start token -> (T,D)."""
        m = context.shape[-2]
        context = context.expand(len(embedded), -1, -1)
        x = torch.cat([embedded[:, :1], context, embedded[:, 1 + m :]], dim=1)
        x = x + self.model.positional_embedding
        x = self.model.transformer(x, attn_mask=self.model.attn_mask)
        x = self.model.ln_final(x)
        return x[torch.arange(len(x)), end] @ self.model.text_projection

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,D)."""
        features: Tensor = self.model.encode_image(pixels)
        return features

    def logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """(B,D), (C,D) or (B,C,D) -> (B,C)."""
        x, classes = F.normalize(x, dim=-1), F.normalize(classes, dim=-1)
        scale = self.model.logit_scale.exp()
        if classes.dim() == 2:
            return scale * x @ classes.T
        return scale * (classes @ x.unsqueeze(-1)).squeeze(-1)


class Cell(nn.Module):
    """One method on one problem: parameters, and logits of features."""

    def __init__(self, problem: Plain, method: str, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.problem = problem
        self.method = method
        for name, value in start.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value.clone()))
        texts = [f"{n}." for n in problem.names]
        if method == "vip":
            texts = [f"{s}." for row in problem.symptoms for s in row]
        self.embedded, self.end = problem.prompts(texts, self.context.shape[-2])

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        p = self.problem
        if self.method == "coop":
            return p.logits(x, p.text(self.embedded, self.end, self.context))
        if self.method == "cocoop":
            hidden = torch.relu(
                F.linear(F.normalize(x, dim=-1), self.linear1_weight, self.linear1_bias)
            )
            shift = F.linear(hidden, self.linear2_weight, self.linear2_bias)
            rows = [p.text(self.embedded, self.end, self.context + s) for s in shift]
            return p.logits(x, torch.stack(rows))
        texts = p.text(self.embedded, self.end, self.context)
        texts = texts.reshape(len(p.names), -1, texts.shape[-1])
        query, keys = self.query @ self.w_q.T, texts @ self.w_k.T
        scores = (keys @ query.unsqueeze(-1)).squeeze(-1) / query.shape[-1] ** 0.5
        merged = self.query + (scores.softmax(-1).unsqueeze(-1) * texts).sum(1)
        return p.logits(x, merged)


def step(cell: Cell, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> float:
    """One step on features x (B,D); returns its loss."""
    loss = F.cross_entropy(cell(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
