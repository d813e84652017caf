"""Adapters on features, written down once more from their formulas: two and many classes, one image
of a class and several of another, hyperparameters that are not the defaults."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.given import close, make, scores, toy, train
from vipbench import api
from vipbench.methods.clap import CLAP
from vipbench.methods.lp_plus_plus import LPPlusPlus
from vipbench.methods.ss_text import SSText
from vipbench.methods.ss_text_plus import SSTextPlus
from vipbench.methods.taskres import TaskRes
from vipbench.methods.tip_adapter_f import TipAdapterF

cases = pytest.mark.parametrize(
    ("counts", "dim"), [((1, 4), 9), ((3, 3), 5), ((2, 1, 5, 1, 1, 3, 2), 30)]
)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def cosine(x: Tensor, w: Tensor) -> Tensor:
    return 20.0 * unit(x) @ unit(w).T


def without_views(support: api.Support) -> api.Support:
    return api.Support(support.plain, support.labels, support.n_classes, support.shots)


def sums(support: api.Support, x: Tensor) -> Tensor:
    return torch.stack([x[support.labels == c].sum(0) for c in range(support.n_classes)])


@cases
def test_closed_forms(counts: tuple[int, ...], dim: int) -> None:
    backbone, support, test = toy(counts, dim)
    x, t, n = support.plain, backbone.features, len(support.labels)
    method, _ = make(SSText, backbone, support)
    method.prepare(support)
    close(scores(method, test.x), cosine(test.x, 20.0 * sums(support, x) + t), 1e-3)
    method, _ = make(SSTextPlus, backbone, support, tau=0.2)
    method.prepare(support)
    each = torch.tensor(counts)[:, None]
    m = each / n / 0.2 * sums(support, x) + t
    w = m - unit(2 * m - m.mean(0))
    close(scores(method, test.x), cosine(test.x, w), 1e-3)


@cases
def test_taskres_and_clap(counts: tuple[int, ...], dim: int) -> None:
    backbone, support, test = toy(counts, dim)
    support, t = without_views(support), backbone.features
    x, y = support.plain, support.labels

    method, recipe = make(TaskRes, backbone, support, alpha=1.7, lr=0.03, weight_decay=0.02,
                          batch_size=3, epochs=5)  # fmt: skip
    assert recipe is not None
    train(method, recipe, support)
    r = torch.zeros_like(t, requires_grad=True)
    adam = torch.optim.Adam([r], lr=0.03, weight_decay=0.02)
    for epoch in range(5):
        cosine_rate = 0.03 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 5))
        adam.param_groups[0]["lr"] = cosine_rate if epoch else 1e-5
        for s in range(0, len(x) - 2, 3):
            adam.zero_grad()
            F.cross_entropy(cosine(x[s : s + 3], t + 1.7 * r), y[s : s + 3]).backward()
            adam.step()
    close(scores(method, test.x), cosine(test.x, t + 1.7 * r).detach(), 1e-3)

    method, recipe = make(CLAP, backbone, support, penalty=2.5, lr=0.05, batch_size=1000, epochs=6)
    assert recipe is not None
    method.prepare(support)
    train(method, recipe, support)
    known = cosine(x, t).softmax(-1)
    strength = torch.stack([known[y == c, c].mean() for c in range(len(counts))])
    w = t.clone().requires_grad_()

    def loss(batch: Tensor, labels: Tensor) -> Tensor:
        away = (strength * (w - t).square().sum(-1)).mean()
        return F.cross_entropy(cosine(batch, w), labels) + 2.5 * away

    optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9)
    for epoch in range(6):
        rate = 0.05 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 6))
        optimizer.param_groups[0]["lr"] = rate if epoch else 1e-5
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
    close(scores(method, test.x), cosine(test.x, w).detach(), 1e-3)


@cases
def test_lp_plus_plus_with_unequal_classes(counts: tuple[int, ...], dim: int) -> None:
    backbone, support, test = toy(counts, dim)
    method, _ = make(
        LPPlusPlus, backbone, support, iterations=25, momentum=0.8, alpha_every=4, alpha_init=30.0
    )
    method.prepare(support)
    f, t, y = unit(support.plain), unit(backbone.features), support.labels
    close(method.head.weight, sums(support, f), 1e-5)
    mean = torch.stack([(f[y == c] @ t[c]).mean() for c in range(len(counts))]).mean()
    close(method.alpha, torch.full((len(counts),), 30.0 * float(mean)), 1e-4)
    w = method.head.weight.detach().clone().requires_grad_()
    b = method.head.bias.detach().clone().requires_grad_()
    a = method.alpha.detach().clone().requires_grad_()
    lr = 4 * len(f) / torch.linalg.matrix_norm(f.T @ f, 2)
    rate = len(f) / (4 * (f @ t.T).square().sum(0).max())
    optimizer = torch.optim.SGD([w, b], lr=float(lr), momentum=0.8)

    def logits(x: Tensor) -> Tensor:
        return x @ w.T + b + a * (x @ t.T)

    for step in range(1, 26):
        optimizer.zero_grad()
        F.cross_entropy(logits(f), y).backward()
        optimizer.step()
        if step % 4 == 0:
            assert a.grad is not None
            a.data -= rate * a.grad  # never set to zero
    method.fit(support)
    close(scores(method, test.x), logits(unit(test.x)).detach(), 1e-3)


@cases
def test_tip_adapter_f(counts: tuple[int, ...], dim: int) -> None:
    backbone, support, test = toy(counts, dim)
    hparams: dict[str, Any] = {"alpha": 2.0, "beta": 3.0, "lr": 0.01, "epochs": 3, "batch_size": 4}
    support = without_views(support)
    method, recipe = make(TipAdapterF, backbone, support, **hparams)
    assert recipe is not None
    method.prepare(support)
    train(method, recipe, support)
    method.finish(support)
    f, t, y = unit(support.plain), unit(backbone.features), support.labels
    keys, values = f.clone().requires_grad_(), F.one_hot(y, len(counts)).float()

    def logits(x: Tensor) -> Tensor:
        return 100 * x @ t.T + 2.0 * torch.exp(-3.0 * (1 - x @ keys.T)) @ values

    steps = 3 * math.ceil(len(f) / 4)
    adamw = torch.optim.AdamW([keys], lr=0.01, eps=1e-4, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    for _ in range(3):
        for s in range(0, len(f), 4):
            adamw.zero_grad()
            F.cross_entropy(logits(f[s : s + 4]), y[s : s + 4]).backward()
            adamw.step()
            rates.step()
    close(scores(method, test.x), logits(unit(test.x)).detach(), 1e-3)
