"""TransCLIP, few-shot (Zanella et al., NeurIPS 2024, arXiv 2406.01837), eq. 9: transductive.

TransCLIP whose mixture also holds the labelled support images, with strength γ; λ = 0.5. γ is
the best of 0.002, 0.01, 0.02, 0.2 on validation (a validation image gets the class of its
nearest test image; the first of equally good), without validation the constant `gamma`.

The official program pairs the rows of its neighbour matrix with the wrong samples, drops the
nearest neighbour of support images too, and lets each γ go on from the last one's state, the
last γ counting where there is no validation; `compat` does all of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import one_hot
from vipbench.methods.shared.transclip import Labelled, solve
from vipbench.methods.transclip import TransCLIP


class TransCLIPFS(TransCLIP):
    """Few-shot with all test images seen at once: a Gaussian mixture held to texts and labels."""

    name = "transclip-fs"
    uses_support = True
    published = api.Published(validation="min(k,4)")

    @dataclass(frozen=True)
    class HParams(TransCLIP.HParams):
        """text_weight: λ. gammas: the values of γ to choose from, with commas. gamma: γ without
        validation."""

        text_weight: api.NonNegative = 0.5
        gammas: str = "0.002,0.01,0.02,0.2"
        gamma: api.NonNegative = 0.02
        compat: Literal["paper", "official"] = "paper"

        tunes = (*TransCLIP.HParams.tunes, api.Range("gamma", 2e-3, 0.2, log=True))

        def __post_init__(self) -> None:
            if not self.values or not all(0 <= value <= 1e6 for value in self.values):
                raise ValueError(
                    f"gammas is {self.gammas!r}; expected numbers from 0 to 1000000 with commas"
                )

        @property
        def values(self) -> tuple[float, ...]:
            """The values of γ."""
            return tuple(float(part) for part in self.gammas.split(",") if part.strip())

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.val: api.Labelled | None = None

    def prepare(self, support: api.Support) -> None:
        """Keep the labelled images for `predict`."""
        self.support = F.normalize(support.plain, dim=-1)  # (S,D)
        self.member = one_hot(support.labels, self.task.n_classes, self.support)  # (S,C)
        self.val = support.val

    def predict(self, x: Tensor) -> Tensor:
        """All test images: (Q,D) -> log-probabilities (Q,C)."""
        hp, q = self.hparams, F.normalize(x, dim=-1)
        official = hp.compat == "official"
        gammas = hp.values if official or self.val is not None else (hp.gamma,)
        best, chosen = -1, None
        for z in solve(
            q,
            self(x).softmax(-1),
            Labelled(self.support, self.member),
            gammas,
            text_weight=hp.text_weight,
            max_iter=hp.max_iter,
            inner_iter=hp.inner_iter,
            n_neighbors=hp.n_neighbors,
            n_most_confident=hp.n_most_confident,
            official=official,
        ):
            right = self._right(q, z)
            if right is None or right > best:
                best, chosen = right or 0, z
        assert chosen is not None
        return chosen.clamp(min=torch.finfo(chosen.dtype).tiny).log()

    def _right(self, q: Tensor, z: Tensor) -> int | None:
        if self.val is None:
            return None
        nearest = (F.normalize(self.val.x, dim=-1) @ q.T).argmax(1)
        return int((z[nearest].argmax(1) == self.val.labels).sum())
