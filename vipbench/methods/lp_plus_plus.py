"""LP++ (Huang et al., CVPR 2024, arXiv 2404.02285), Algorithm 1: a text-informed linear probe.

Logits: W f + b + α_c·(f·t_c), with f and t of unit length. Full-batch gradient steps with sizes
from the data, no search: W and b by SGD with momentum 0.9 at 4N/λ_max(FᵀF); α every 10th
iteration by N/(4·max_c Σ_i (f_i·t_c)²) times the gradient of α summed over all iterations so far
(the official program never sets it to zero, and the published figures come of that). W starts at
the sum of each class's features, b at PyTorch's default for a linear layer, α at 250 times the
mean over classes of the mean cosine of image and true text. 300 iterations.

The paper keeps the iteration that is best on validation; here that is so where the run selects
by validation (`--selection best_val`), otherwise the last one counts. Of equally good
iterations the first counts; the official program takes the last, as `compat` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, in_double, one_hot, unit_texts


class LPPlusPlus(api.Method):
    """A linear probe plus weighted text logits, with step sizes from the data."""

    name = "lp++"
    kind = "AD"
    paper = "Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP"
    year = 2024
    cost = "seconds"
    published = api.Published(validation="min(k,4)", selection="best_val")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """alpha_every: iterations between two steps of α. alpha_init: α's start over the mean
        cosine. compat: "official" takes the last of equally good iterations on validation."""

        iterations: api.Count = 300
        momentum: api.ProportionBelowOne = 0.9
        alpha_every: api.Count = 10
        alpha_init: api.Positive = 250.0
        templates: Templates = "first"
        compat: Literal["paper", "official"] = "paper"

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = unit_texts(task, hparams.templates)  # (C,D)
        self.head = task.linear("head", task.info.dim, task.n_classes)
        self.alpha = nn.Parameter(self.text.new_zeros(task.n_classes))  # (C,)

    def prepare(self, support: api.Support) -> None:
        """W and α; classes without support images start at W = 0 and do not count for α."""
        x = F.normalize(support.plain, dim=-1)
        member = one_hot(support.labels, self.task.n_classes, x)  # (N,C)
        # In double precision, as the official program does it: α is large.
        cosine = in_double(member * (x @ self.text.T)).sum(0)  # (C,)
        count = member.sum(0).to(cosine.device)
        cosine = cosine / count.clamp(min=1)
        with torch.no_grad():
            self.head.weight.copy_(member.T @ x)
            self.alpha.fill_(self.hparams.alpha_init * float(cosine[count > 0].mean()))

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        x = F.normalize(x, dim=-1)
        logits: Tensor = self.head(x) + self.alpha * (x @ self.text.T)
        return logits

    def fit(self, support: api.Support) -> None:
        """The iterations, and which of them counts."""
        hp = self.hparams
        x = F.normalize(support.plain, dim=-1)
        gram = x.T @ x if len(x) > x.shape[1] else x @ x.T
        lr = 4 * len(x) / float(torch.linalg.eigvalsh(gram)[-1])
        most = float((x @ self.text.T).square().sum(0).max())
        lr_alpha = len(x) / (4 * max(most, torch.finfo(x.dtype).tiny))
        sgd = torch.optim.SGD(self.head.parameters(), lr=lr, momentum=hp.momentum)
        val = support.val if support.best_val else None
        best, kept = -1, {}
        for step in range(hp.iterations):
            sgd.zero_grad()
            F.cross_entropy(self(x), support.labels).backward()
            sgd.step()
            with torch.no_grad():
                if (step + 1) % hp.alpha_every == 0 and self.alpha.grad is not None:
                    self.alpha.sub_(lr_alpha * self.alpha.grad)
                if val is None:
                    continue
                right = int((self(val.x).argmax(-1) == val.labels).sum())
                if right > best or (right == best and hp.compat == "official"):
                    best, kept = right, {k: v.clone() for k, v in self.state_dict().items()}
        self.alpha.grad = None
        if kept:
            self.load_state_dict(kept)
