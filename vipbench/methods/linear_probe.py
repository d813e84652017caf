"""Linear probe: multinomial logistic regression on features (Radford et al. 2021, §3.2 and A.3).

Fitted by L-BFGS in scikit-learn. The regularisation C is searched on validation as in few-shot
work with CLIP: seven decades from 1e-6 to 1e6, then a binary search around the best. Where the
run's policy allows no validation, the constant `C` is used. Nothing selects on test.
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from vipbench import api

UNSEEN = -1e4
DECADES = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)


class LinearProbe(api.Method):
    """Multinomial logistic regression (L-BFGS) on image features, C searched on validation."""

    name = "linear-probe"
    kind = "AD"
    paper = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision"
    year = 2021
    cost = "seconds"
    needs = frozenset()
    published = api.Published(validation="min(k,4)")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """C: inverse regularisation where there is no validation (CLIP's own choice for
        ImageNet). search: whether to search C where there is. steps: of the binary search.
        max_iter: of L-BFGS. normalise: fit unit-length features instead of the tower's own."""

        C: api.Positive = 0.316
        search: bool = True
        steps: api.Whole = 8
        max_iter: api.Count = 1000
        normalise: bool = False

        tunes = (api.Range("C", 1e-3, 1e3, log=True),)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        # Imported here, since importing it draws random numbers, which `fit` may not.
        importlib.import_module("sklearn.linear_model")
        dim, classes = task.image_backbone.dim, task.n_classes
        self.weight = nn.Parameter(torch.zeros(classes, dim, device=task.device))  # (C,D)
        self.bias = nn.Parameter(torch.zeros(classes, device=task.device))  # (C,)
        self.chosen_c = torch.tensor(hparams.C)

    @torch.no_grad()
    def fit(self, support: api.Support) -> None:
        """Search C where validation is allowed, then fit."""
        x, y = self._numpy(support.plain), support.labels.cpu().numpy()
        c = self.hparams.C
        if support.val is not None and self.hparams.search:
            c = self._search(x, y, self._numpy(support.val.x), support.val.labels.cpu().numpy())
        probe = self._fit(x, y, c)
        weight, bias = probe.coef_, probe.intercept_
        if len(probe.classes_) == 2:
            # scikit-learn keeps one row for two classes; the symmetric pair gives the same odds.
            weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        rows = torch.as_tensor(probe.classes_, device=self.weight.device)
        # A class without support images must never be predicted; scores stay finite.
        self.bias.fill_(UNSEEN if len(rows) < len(self.bias) else 0.0)
        self.weight[rows] = torch.as_tensor(weight).to(self.weight)
        self.bias[rows] = torch.as_tensor(bias).to(self.bias)
        self.chosen_c.fill_(c)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self._scaled(x) @ self.weight.T + self.bias

    def _scaled(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1) if self.hparams.normalise else x

    def _numpy(self, x: Tensor) -> Any:
        return self._scaled(x).cpu().numpy().astype(np.float64)

    def _fit(self, x: Any, y: Any, c: float) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        # Problems this small only lose by threads, above all on a busy machine.
        with threadpool_limits(1), warnings.catch_warnings():
            # Weak regularisation on separable support sets converges slowly by its nature.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=c, max_iter=self.hparams.max_iter).fit(x, y)

    def _search(self, x: Any, y: Any, val_x: Any, val_y: Any) -> float:
        def accuracy(c: float) -> float:
            return float(self._fit(x, y, c).score(val_x, val_y))

        scores = {c: accuracy(c) for c in DECADES}
        # The first of ties, from weak to strong regularisation as listed.
        best = max(DECADES, key=lambda c: scores[c])
        low, high = math.log10(best) - 1, math.log10(best) + 1
        left, right = accuracy(10**low), accuracy(10**high)
        for _ in range(self.hparams.steps):
            middle = (low + high) / 2
            if left < right:
                low, left = middle, accuracy(10**middle)
            else:
                high, right = middle, accuracy(10**middle)
        return float(10**low if left >= right else 10**high)
