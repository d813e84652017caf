"""ViP, visual symptom-guided prompt learning (MICCAI 2024, arXiv 2409.00341).

Dual-Prompt Network: M context vectors, shared by all, stand before every symptom (Context
Prompt, CoP); per class a learned query g merges the symptoms' text features T (K,D) (Merge
Prompt, MeP): s = g + softmax((g W_q)(T W_k)ᵀ/√D) T. Class = highest cosine of s and the image.
Published settings: M = 4, N(0, 0.02²) for context and g, Xavier normal for W_q and W_k; 50
epochs; rate and batch 2e-3 and 32 (ViT-B/16), 2e-3 and 16 (ViT-L/14@336), 1e-3 and 8 (RN50x64).
The official program gives g the text tower's width, which works only where it equals D; g has D
here. Its ablations (Table 2 of the paper) are `context` and `merge`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from vipbench import api


class ViP(api.Method):
    """Learned context before every visual symptom, attention that merges a class's symptoms."""

    name = "vip"
    kind = "TP"
    paper = "Fang et al., Aligning Medical Images with General Knowledge from Large Language Models"
    year = 2024
    cost = "minutes"
    needs = frozenset({"symptoms"})
    published = api.Published(validation="full", selection="best_val")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """context: whether to learn one. merge: attention, or the mean or maximum over a class's
        symptoms of the cosine. n_ctx: M. lr, batch_size: None follows the paper by backbone."""

        context: bool = True
        merge: Literal["attention", "mean", "max"] = "attention"
        n_ctx: api.Count = 4
        position: Literal["end", "middle", "front"] = "end"
        class_specific: bool = False
        lr: api.Positive | None = None
        batch_size: api.Count | None = None
        epochs: api.Count = 50

        tunes = (
            api.Range("lr", 2e-4, 2e-2, log=True),
            api.Choice("n_ctx", (2, 4, 8, 16)),
        )

        def for_cell(self, info: api.CellInfo) -> ViP.HParams:
            """Rate and batch size by backbone."""
            lr, batch = 2e-3, 32
            if "RN50x64" in info.backbone:
                lr, batch = 1e-3, 8
            elif "ViT-L-14-336" in info.backbone:
                lr, batch = 2e-3, 16
            return replace(self, lr=self.lr or lr, batch_size=self.batch_size or batch)

        def recipe(self, info: api.CellInfo) -> api.Recipe | None:
            """Prompt SGD; nothing is trained without context and attention."""
            if not self.context and self.merge != "attention":
                return None
            assert self.lr is not None
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        dim, width, classes = task.info.dim, task.info.width, task.n_classes
        symptoms = [[_text(s, hparams) for s in row] for row in task.symptom_texts()]
        self.prompts = task.embed(symptoms, hparams.n_ctx if hparams.context else 0)  # (C,K)
        self.mask = self.prompts.mask
        if hparams.context:
            shape = (classes, 1, hparams.n_ctx, width) if hparams.class_specific else None
            self.context = nn.Parameter(task.normal("context", *(shape or (hparams.n_ctx, width))))
        else:
            self.symptoms = task.text_features(symptoms)  # (C,K,D)
        if hparams.merge == "attention":
            self.query = nn.Parameter(task.normal("query", classes, dim))  # g
            self.w_q = nn.Parameter(task.xavier_normal("w_q", dim, dim))  # (D,D)
            self.w_k = nn.Parameter(task.xavier_normal("w_k", dim, dim))

    def symptom_features(self) -> Tensor:
        """T (C,K,D)."""
        if self.hparams.context:
            return self.task.encode_text(self.prompts, self.context)
        return self.symptoms

    def attention(self, symptoms: Tensor) -> Tensor:
        """T (C,K,D) -> how much each symptom counts (C,K)."""
        query, keys = self.query @ self.w_q.T, symptoms @ self.w_k.T  # (C,D), (C,K,D)
        scores: Tensor = (keys @ query.unsqueeze(-1)).squeeze(-1) / query.shape[-1] ** 0.5
        return torch.softmax(self._masked(scores), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        symptoms = self.symptom_features()
        if self.hparams.merge == "attention":
            weights = self.attention(symptoms)
            classes = self.query + (weights.unsqueeze(-1) * symptoms).sum(-2)  # (C,D)
            return self.task.cosine_logits(x, classes)
        logits = self.task.cosine_logits(x, symptoms.flatten(0, 1))  # (B,C*K)
        logits = logits.unflatten(-1, symptoms.shape[:2])  # (B,C,K)
        if self.hparams.merge == "max":
            return self._masked(logits).amax(-1)
        mask = torch.ones_like(logits[0]) if self.mask is None else self.mask.to(logits)
        mean: Tensor = (logits * mask).sum(-1) / mask.sum(-1)
        return mean

    def symptom_view(self) -> tuple[Tensor, Tensor]:
        """T and the merge attention; without attention every symptom counts alike."""
        symptoms = self.symptom_features()
        if self.hparams.merge == "attention":
            return symptoms, self.attention(symptoms)
        return symptoms, torch.softmax(self._masked(symptoms.new_zeros(symptoms.shape[:2])), -1)

    def _masked(self, values: Tensor) -> Tensor:
        return values if self.mask is None else values.masked_fill(~self.mask, -torch.inf)


def _text(symptom: str, hparams: ViP.HParams) -> str | tuple[str, ...]:
    words = symptom.replace("_", " ").rstrip(".")
    if not hparams.context:
        return f"{words}."
    return {"end": ("", f"{words}."), "middle": ("", words, "."), "front": (words, ".")}[
        hparams.position
    ]
