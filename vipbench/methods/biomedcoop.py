"""BiomedCoOp (Koleilat et al., CVPR 2025, arXiv 2411.15232): CoOp against LLM-written texts.

Loss: cross-entropy + λ₁·(mean squared difference of the class texts and the mean of each class's
50 descriptions) + λ₂·(Kullback-Leibler divergence from the prediction of those descriptions that
are kept). Kept are, from every batch anew, those whose score (mean over the batch of the best
class's logit) is no outlier: |score - mean| ≤ τ standard deviations. The official program first
centres and scales by the median and the median absolute deviation, which changes nothing, since
the second standardisation undoes it. Its divisors are kept: C·D for the first term, batch·C for
the second; the published λ belong to them.

Published settings: context from "a photo of a", SGD 2.5e-3, batch 4, 100 epochs, no flips; λ are
tuned for each of the paper's datasets. Here one value of each stands for all, and records say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.deep import starting_words

UNTUNED = "λ of BiomedCoOp untuned: one default for all datasets, where the paper tunes each"


class BiomedCoOp(api.Method):
    """CoOp held to LLM-written descriptions of each class."""

    name = "biomedcoop"
    kind = "TP"
    paper = "Koleilat et al., BiomedCoOp: Learning to Prompt for Biomedical Vision-Language Models"
    year = 2025
    revision = 2
    needs = frozenset({"text", "descriptions"})
    pads = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_prompts: descriptions of each class that are used, the least that there must be.
        consistency, distillation: λ₁, λ₂. n_ctx: M. context_init: words whose first M tokens
        start the context; the words after them stay in the text. Fewer tokens, or empty:
        N(0, 0.02²)."""

        n_prompts: api.Count = 50
        consistency: api.NonNegative = 0.5
        distillation: api.NonNegative = 0.25
        tau: api.Positive = 1.5
        n_ctx: api.Count = 4
        context_init: str = "a photo of a"
        class_specific: bool = False
        lr: api.Positive = 2.5e-3
        batch_size: api.Count = 4
        epochs: api.Count = 100

        tunes = (
            api.Range("lr", 2.5e-4, 2.5e-2, log=True),
            api.Range("consistency", 0.05, 20.0, log=True),
            api.Range("distillation", 0.05, 20.0, log=True),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD without flips."""
            return api.Recipe(
                lr=self.lr,
                epochs=self.epochs,
                batch_size=self.batch_size,
                views=api.Views(flip=False),
            )

        def notes(self, info: api.CellInfo) -> tuple[str, ...]:
            """That λ is a default."""
            defaults = type(self)()
            tuned = (self.consistency, self.distillation) != (
                defaults.consistency,
                defaults.distillation,
            )
            return () if tuned else (UNTUNED,)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        many = (task.n_classes,) if hparams.class_specific else ()
        context, rest = starting_words(task, hparams.context_init, hparams.n_ctx, many)
        texts = [("", f"{rest} {name}.".lstrip()) for name in task.names]
        self.prompts = task.embed(texts, hparams.n_ctx)  # (C,)
        self.context = nn.Parameter(context)  # (M,W) or (C,M,W)
        known = task.description_texts(hparams.n_prompts)
        self.experts = F.normalize(task.text_features(known), dim=-1)  # (C,K,D)
        self.centre = F.normalize(self.experts.mean(1), dim=-1)  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self._classes())

    def loss(self, batch: api.Batch) -> Tensor:
        """The three terms."""
        hp = self.hparams
        classes = self._classes()
        logits = self.task.cosine_logits(batch.x, classes)
        teacher = self.task.cosine_logits(batch.x, self._kept(batch))
        entropy = batch.mean(F.cross_entropy(logits, batch.labels, reduction="none"))
        away = (classes - self.centre).square().mean()
        apart = F.kl_div(
            logits.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
        )  # (B,C)
        divergence = batch.mean(apart).mean()
        total: Tensor = entropy + hp.consistency * away + hp.distillation * divergence
        return total

    def _classes(self) -> Tensor:
        """(C,D), of unit length."""
        return F.normalize(self.task.encode_text(self.prompts, self.context), dim=-1)

    @torch.no_grad()
    def _kept(self, batch: api.Batch) -> Tensor:
        """(C,D): per class the mean of the kept descriptions, of unit length."""
        x = F.normalize(batch.x, dim=-1)
        similar = self.task.logit_scale * (self.experts @ x.T)  # (C,K,B)
        score = batch.mean(similar.amax(0).T)  # (K,)
        away = (score - score.mean()).abs()
        # Of equal scores, or of one alone, all are kept.
        spread = score.std() if len(score) > 1 else torch.zeros_like(score[0])
        keep = (away <= self.hparams.tau * spread).to(x)
        return F.normalize((keep.unsqueeze(-1) * self.experts).sum(1), dim=-1)
