"""docs/variants.md: what two benchmark programs run under well-known names, and how far the
methods as defined are from it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_util import load_golden
from tests.methods.given import GivenTexts, generator, make, scores, support_of, tensor
from vipbench import api
from vipbench.engine.training import trainer as training
from vipbench.engine.training.stacking import TrainCell
from vipbench.methods.clap import CLAP
from vipbench.methods.clip_adapter import CLIPAdapter
from vipbench.methods.cross_modal import CrossModal
from vipbench.methods.lp_plus_plus import LPPlusPlus
from vipbench.methods.ncm import NCM
from vipbench.methods.taskres import TaskRes
from vipbench.methods.tip_adapter import TipAdapter
from vipbench.methods.tip_adapter_f import TipAdapterF
from vipbench.methods.zs_lp import ZSLP

PAGE = Path(__file__).resolve().parents[2] / "docs" / "variants.md"
Case = dict[str, Any]


def arrays(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Features and labels of the training, class texts, test features, temperature."""
    prefix = "support" if "support_features" in case else "train"
    x, y = tensor(case[f"{prefix}_features"]), tensor(case[f"{prefix}_labels"]).long()
    scale = math.exp(case["meta"]["hyper"]["logit_scale_log"])
    return x, y, tensor(case["text_features"]), tensor(case["test_features"]), scale


def cosine(x: Tensor, w: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(w, dim=-1).T


def ssbench_training(
    case: Case, start: list[Tensor], loss: Callable[..., Tensor]
) -> list[torch.nn.Parameter]:
    """300 full-batch steps of SGD 0.1 with momentum, a cosine over the steps."""
    hyper = case["meta"]["hyper"]
    params = [torch.nn.Parameter(value.clone()) for value in start]
    sgd = torch.optim.SGD(params, lr=hyper["lr"], momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, hyper["epochs"])
    for _ in range(hyper["epochs"]):
        sgd.zero_grad()
        loss(*params).backward()
        sgd.step()
        schedule.step()
    return params


def claprepo_training(
    case: Case, start: list[Tensor], logits: Callable[..., Tensor]
) -> list[torch.nn.Parameter]:
    """SGD without decay over the recorded batches and rates."""
    x, y, *_ = arrays(case)
    params = [torch.nn.Parameter(value.clone()) for value in start]
    sgd = torch.optim.SGD(params, lr=1.0, momentum=0.9)
    for rows, rate in zip(case["batch_indices"], case["lr_per_step"], strict=True):
        sgd.param_groups[0]["lr"] = float(rate)
        sgd.zero_grad()
        F.cross_entropy(logits(x[rows], *params), y[rows]).backward()
        sgd.step()
    return params


def linear(
    case: Case,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    x, y, text, test, scale = arrays(case)
    if "labels_text" in case and loss is joint_marker:
        x = torch.cat([x, tensor(case["samples_text"])])
        y = torch.cat([y, tensor(case["labels_text"]).long()])
        loss = None

    def total(w: Tensor) -> Tensor:
        entropy = F.cross_entropy(scale * cosine(x, w), y, class_weights)
        return entropy if loss is None else entropy + loss(w, text)

    (w,) = ssbench_training(case, [text], total)
    return scale * cosine(test, w)


def joint_marker(w: Tensor, text: Tensor) -> Tensor:
    raise AssertionError("only marks the joint training")


def ssbench_lpcw(case: Case) -> Tensor:
    _, y, text, *_ = arrays(case)
    counts = torch.bincount(y, minlength=len(text))
    return linear(case, class_weights=len(y) / ((counts > 0).sum() * counts.clamp(min=1)))


def ssbench_clap(case: Case) -> Tensor:
    x, y, text, _, scale = arrays(case)
    known = (scale * cosine(x, text)).softmax(-1)
    # A class without support images takes the mean of the others, which leaves the mean as it is.
    strength = torch.stack([known[y == c, c].mean() for c in y.unique().tolist()])

    def penalty(w: Tensor, text: Tensor) -> Tensor:
        return strength.mean() * (w - text).square().sum(-1).mean()

    return linear(case, penalty)


def ssbench_clipadapt(case: Case) -> Tensor:
    x, y, text, test, scale = arrays(case)

    def logits(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return scale * cosine(0.8 * x + 0.2 * x @ down.T @ up.T, text)

    start = [tensor(case[f"init/adapter.adapter.{i}.weight"]) for i in (0, 1)]
    params = ssbench_training(case, start, lambda *p: F.cross_entropy(logits(x, *p), y))
    return logits(test, *params)


def ssbench_lppp(case: Case) -> Tensor:
    x, y, text, test, _ = arrays(case)
    t, unit = F.normalize(text, dim=-1), F.normalize(x, dim=-1)
    member = F.one_hot(y, len(t)).float()
    raw = x @ t.T
    alpha = torch.full(
        (len(t),), float(250 * (member * raw).sum(0).div(member.sum(0).clamp(min=1)).mean())
    )
    steps = len(case["losses"])
    lr = 4 * len(x) / float(torch.linalg.eigvalsh(unit.T @ unit)[-1])
    lr_alpha = len(x) / (4 * float(raw.square().sum(0).max()))
    head = torch.nn.Linear(x.shape[1], len(t))
    with torch.no_grad():
        head.weight.copy_(member.T @ unit)
        head.bias.copy_(tensor(case["init/adapter.classifier.bias"]))
    alpha.requires_grad_()

    def logits(x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return head(x) + alpha * (x @ t.T)

    sgd = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9)
    for step in range(steps):
        sgd.zero_grad()
        F.cross_entropy(logits(x), y).backward()
        sgd.step()
        if (step + 1) % 10 == 0:
            alpha.data -= lr_alpha * alpha.grad
    return logits(test)


def ssbench_taskres(case: Case) -> Tensor:
    return linear(case)  # α = 1 from x = 0: the linear probe by another name


def ssbench_tipad(case: Case, values: Tensor | None = None) -> Tensor:
    x, y, text, test, _ = arrays(case)
    values = F.one_hot(y, len(text)).float() if values is None else values
    return cosine(test, text) + torch.exp(cosine(test, x) - 1) @ values


def ssbench_tipadft(case: Case) -> Tensor:
    x, y, text, _, _ = arrays(case)

    def loss(values: Tensor) -> Tensor:
        return F.cross_entropy(cosine(x, text) + torch.exp(cosine(x, x) - 1) @ values, y)

    (values,) = ssbench_training(case, [F.one_hot(y, len(text)).float()], loss)
    return ssbench_tipad(case, values)


def ssbench_ss(case: Case) -> Tensor:
    x, y, text, test, scale = arrays(case)
    means = torch.stack([x[y == c].mean(0) for c in range(len(text))])
    return scale * cosine(test, means)


def claprepo_clipadapter(case: Case) -> Tensor:
    _, _, text, test, scale = arrays(case)
    ratio = case["meta"]["hyper"]["ratio"]

    def logits(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        adapted = torch.relu(torch.relu(x @ down.T) @ up.T)
        return scale * cosine(ratio * adapted + (1 - ratio) * x, text)

    start = [tensor(case[f"init/mlp.{i}.weight"]) for i in (0, 2)]
    return logits(test, *claprepo_training(case, start, logits))


def claprepo_taskres(case: Case) -> Tensor:
    _, _, text, test, scale = arrays(case)
    alpha = case["meta"]["hyper"]["alpha"]

    def logits(x: Tensor, residual: Tensor) -> Tensor:
        return scale * cosine(x, text + alpha * residual)

    return logits(test, *claprepo_training(case, [torch.zeros_like(text)], logits))


def claprepo_tipf(case: Case) -> Tensor:
    x, y, text, test, scale = arrays(case)
    hyper, values = case["meta"]["hyper"], F.one_hot(y, len(text)).float()

    def logits(q: Tensor, keys: Tensor) -> Tensor:
        affinity = q @ F.normalize(keys, dim=-1).T
        cache = torch.exp(hyper["beta"] * (affinity - 1)) @ values
        return scale * cosine(q, text) + hyper["alpha"] * cache

    return logits(test, *claprepo_training(case, [x], logits))


# File -> what it computes, the method of that name, the hyperparameters that the two share.
VARIANTS: dict[str, tuple[Callable[[Case], Tensor], type[api.Method], dict[str, Any]]] = {
    "ssbench_clap": (ssbench_clap, CLAP, {}),
    "ssbench_clipadapt": (ssbench_clipadapt, CLIPAdapter, {"lr": 0.1, "epochs": 300}),
    "ssbench_crossmodal": (lambda case: linear(case, joint_marker), CrossModal, {}),
    "ssbench_lp": (linear, ZSLP, {}),
    "ssbench_lpcw": (ssbench_lpcw, ZSLP, {}),
    "ssbench_lppp": (ssbench_lppp, LPPlusPlus, {}),
    "ssbench_lppp_tf": (ssbench_lppp, LPPlusPlus, {}),
    "ssbench_ss": (ssbench_ss, NCM, {"logit_scale": math.exp(4.0)}),
    "ssbench_taskres": (ssbench_taskres, TaskRes, {"lr": 0.1, "epochs": 300}),
    "ssbench_tipad": (ssbench_tipad, TipAdapter, {}),
    "ssbench_tipadft": (ssbench_tipadft, TipAdapterF, {}),
    "claprepo_clipadapter": (claprepo_clipadapter, CLIPAdapter, {"lr": 0.1, "epochs": 12}),
    "claprepo_taskres": (claprepo_taskres, TaskRes, {"lr": 0.1, "epochs": 12}),
    "claprepo_tipf": (claprepo_tipf, TipAdapterF, {"epochs": 10, "alpha": 1.0, "beta": 1.0}),
}


def defined(case: Case, method: type[api.Method], hparams: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The test scores of the method as vipbench ships it, on the file's support set."""
    _, _, text, test, scale = arrays(case)
    support = dataclasses.replace(
        support_of(case, "support" if "support_features" in case else "train"), shots=4
    )
    built, recipe = make(method, GivenTexts(text, scale), support, **hparams)
    built.prepare(support)
    if api.has_own_fit(method):
        built.fit(support)
    elif recipe is not None and recipe.epochs:
        training.train([TrainCell(built, recipe, support, generator)])
    built.eval()
    return scores(built, test)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_the_page_says_and_not_the_method(shared: Path, name: str) -> None:
    case = load_golden(shared / "golden" / f"{name}_a.npz")
    variant, method, hparams = VARIANTS[name]
    found = variant(case).detach().numpy()
    tolerance = max(1e-4, 10 * case["meta"]["sensitivity"]["logits_final"])
    np.testing.assert_allclose(found, case["logits_final"], rtol=0, atol=tolerance)
    own = defined(case, method, hparams)
    moved = np.abs(own - case["logits_final"]).max()
    changed = int((own.argmax(1) != case["logits_final"].argmax(1)).sum())
    row = re.search(rf"^\| `{name}` \|.*\| ([\d.]+) \| (\d+) \|$", PAGE.read_text(), re.M)
    print(f"{name}: {moved:.2g} {changed}")
    assert row is not None
    assert moved == pytest.approx(float(row[1]), rel=0.06)
    assert abs(changed - int(row[2])) <= 1
    assert moved > 100 * tolerance


def unequal(case: Case, counts: tuple[int, ...], repeat: tuple[int, ...]) -> Case:
    """The case with the first `counts` images of each class, each `repeat` times."""
    labels = case["support_labels"]
    rows = [
        np.repeat(np.flatnonzero(labels == c)[:n], r)
        for c, (n, r) in enumerate(zip(counts, repeat, strict=True))
    ]
    some = np.concatenate(rows)
    support = {f"support_{part}": case[f"support_{part}"][some] for part in ("features", "labels")}
    return {**case, **support}


def test_class_weights_are_those_of_images_repeated_to_equal_counts(shared: Path) -> None:
    case = load_golden(shared / "golden" / "ssbench_lpcw_a.npz")
    weighted = ssbench_lpcw(unequal(case, (4, 2, 1, 4, 0), (1, 1, 1, 1, 1)))
    repeated = linear(unequal(case, (4, 2, 1, 4, 0), (1, 2, 4, 1, 1)))
    torch.testing.assert_close(weighted, repeated, rtol=0, atol=1e-3)
    unweighted = linear(unequal(case, (4, 2, 1, 4, 0), (1, 1, 1, 1, 1)))
    assert (weighted - unweighted).abs().max() > 1


def test_a_class_without_support_takes_the_mean_strength_of_the_others(shared: Path) -> None:
    case = load_golden(shared / "golden" / "ssbench_clap_a.npz")
    found = ssbench_clap(unequal(case, (4, 2, 1, 4, 0), (1, 1, 1, 1, 1)))
    assert bool(torch.isfinite(found).all())


def test_one_variant_can_be_had_by_hyperparameters(shared: Path) -> None:
    case = load_golden(shared / "golden" / "ssbench_tipad_a.npz")
    own = defined(case, TipAdapter, {"logit_scale": 1.0, "alpha": 1.0, "beta": 1.0})
    np.testing.assert_allclose(own, case["logits_final"], rtol=0, atol=1e-5)
