"""CLIP-Adapter, TaskRes, SS-Text, SS-Text+, CLAP and the zero-shot-initialised linear probe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_util import load_golden
from tests.methods.given import (
    accuracy,
    close,
    given,
    make,
    scores,
    stacked_equals_looped,
    support_of,
    tensor,
    toy,
    train,
)
from vipbench import api
from vipbench.methods.clap import CLAP
from vipbench.methods.clip_adapter import CLIPAdapter
from vipbench.methods.ss_text import SSText
from vipbench.methods.ss_text_plus import SSTextPlus
from vipbench.methods.taskres import TaskRes
from vipbench.methods.zs_lp import ZSLP

ALL = (CLIPAdapter, TaskRes, SSText, SSTextPlus, CLAP, ZSLP)


def test_the_recorded_figures_of_clip_adapter(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "clipadapter_a.npz")
    hyper = golden["meta"]["hyper"]
    support = support_of(golden)
    settings = {name: hyper[name] for name in ("ratio", "reduction", "epochs", "batch_size")}
    method, recipe = make(CLIPAdapter, given(golden), support, lr=hyper["base_lr"], **settings)
    names = {"down": "fc.0.weight", "up": "fc.2.weight"}
    with torch.no_grad():
        for ours, theirs in names.items():
            getattr(method, ours).weight.copy_(tensor(golden[f"init/{theirs}"]))
    close(scores(method, golden["test_features"]), golden["logits_init"])
    assert recipe is not None
    cell = train(method, recipe, support)
    close(cell.losses, golden["losses"])
    close(scores(method, golden["test_features"]), golden["logits_final"])
    for ours, theirs in names.items():
        close(getattr(method, ours).weight, golden[f"final/{theirs}"])


def test_the_recorded_figures_of_taskres(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "taskres_a.npz")
    hyper = golden["meta"]["hyper"]
    support = support_of(golden)
    settings = {name: hyper[name] for name in ("alpha", "weight_decay", "epochs", "batch_size")}
    method, recipe = make(TaskRes, given(golden), support, lr=hyper["base_lr"], **settings)
    close(scores(method, golden["test_features"]), golden["logits_init"])
    assert recipe is not None
    cell = train(method, recipe, support)
    close(cell.losses, golden["losses"])
    close(method.residual, golden["final/text_feature_residuals"])
    close(scores(method, golden["test_features"]), golden["logits_final"])


@pytest.mark.parametrize(("method", "case"), [(SSText, "sstext_a"), (SSTextPlus, "sstextplus_a")])
def test_the_recorded_figures_of_the_closed_forms(
    shared: Path, method: type[api.Method], case: str
) -> None:
    golden = load_golden(shared / "golden" / f"{case}.npz")
    support = support_of(golden)
    built, recipe = make(method, given(golden), support)
    assert recipe is None
    close(scores(built, golden["test_features"]), golden["logits_init"])
    built.prepare(support)
    close(built.prototypes, golden["final/prototypes"], 1e-3)
    close(scores(built, golden["test_features"]), golden["logits_final"], 1.1e-4)


@pytest.mark.parametrize(("method", "case"), [(CLAP, "clap_a"), (ZSLP, "zslp_a")])
def test_the_recorded_figures_of_the_pooled_probes(
    shared: Path, monkeypatch: pytest.MonkeyPatch, method: type[api.Method], case: str
) -> None:
    golden = load_golden(shared / "golden" / f"{case}.npz")
    hyper = golden["meta"]["hyper"]
    whole = support_of(golden, "train")
    n, reps = hyper["support"], hyper["reps"]
    bank, labels = whole.plain.reshape(reps, n, -1), whole.labels.reshape(reps, n)
    assert bool((labels == labels[0]).all())
    support = api.Support(bank[0], labels[0], 5, None, bank.__getitem__, reps)
    settings = {"epochs": hyper["epochs"], "batch_size": hyper["batch_size"], "passes": reps}
    built, recipe = make(method, given(golden), support, lr=hyper["base_lr"], **settings)
    close(scores(built, golden["test_features"]), golden["logits_init"])
    built.prepare(support)
    if isinstance(built, CLAP):
        close(built.strength, golden["alpha_constraint"])
    assert recipe is not None
    cell = train(built, recipe, support, golden["batch_indices"], monkeypatch)
    close(cell.losses, golden["losses"])
    close(built.prototypes, golden["final/prototypes"])
    close(scores(built, golden["test_features"]), golden["logits_final"])


def test_batches_of_the_pooled_probes_come_from_all_views() -> None:
    backbone, support, _ = toy()
    built, recipe = make(ZSLP, backbone, support, batch_size=6, epochs=40)
    assert recipe is not None
    from vipbench.engine.training.batches import schedule
    from vipbench.engine.training.stacking import TrainCell

    plan = schedule(TrainCell(built, recipe, support, lambda purpose: torch.Generator()))
    assert plan.rows.shape == (40, 6)  # nine images hold one batch of six
    assert set(plan.rows.flatten().tolist()) == set(range(9 * 4))
    assert all(len(set(rows)) == 6 for rows in plan.rows.tolist())
    many = dataclasses.replace(recipe, batch_size=256)
    plan = schedule(TrainCell(built, many, support, lambda purpose: torch.Generator()))
    assert plan.rows.shape == (40, 36)  # one batch an epoch holds every view of every image


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_an_unbalanced_support_set_with_an_absent_class(method: type[api.Method]) -> None:
    backbone, support, test = toy(counts=(6, 0, 1))
    built, recipe = make(method, backbone, support)
    built.prepare(support)
    if recipe is not None:
        train(built, dataclasses.replace(recipe, epochs=5), support)
    assert np.isfinite(scores(built, test.x)).all()
    assert accuracy(built, test) > 0.6


def test_ss_text_plus_leaves_an_absent_class_to_its_text() -> None:
    backbone, support, _ = toy(counts=(6, 0, 1))
    built, _ = make(SSTextPlus, backbone, support)
    built.prepare(support)
    text = backbone.features
    weight = torch.tensor([6.0, 0.0, 1.0]) / 7 * 20
    sums = torch.stack([support.plain[support.labels == c].sum(0) for c in range(3)])
    mixed = weight[:, None] * sums + text
    push = torch.nn.functional.normalize(2 * mixed - mixed.mean(0), dim=-1)
    torch.testing.assert_close(built.prototypes, mixed - push)
    torch.testing.assert_close(mixed[1], text[1])


@pytest.mark.parametrize(
    ("method", "hparams"),
    [
        (CLIPAdapter, {"epochs": 3, "batch_size": 4, "lr": 0.05}),
        (TaskRes, {"epochs": 3}),
        (CLAP, {"epochs": 3, "batch_size": 4}),
        (ZSLP, {"epochs": 3, "batch_size": 4}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_cells_stack(method: type[api.Method], hparams: dict[str, Any]) -> None:
    stacked_equals_looped(method, **hparams)


@pytest.mark.parametrize(
    ("shots", "clip_adapter", "taskres"), [(1, 50, 100), (4, 100, 100), (16, 200, 200)]
)
def test_epochs_follow_the_papers(shots: int, clip_adapter: int, taskres: int) -> None:
    info = api.CellInfo(shots, shots * 3, 3, "toy", 12, 12, "toy")
    assert CLIPAdapter.HParams().for_cell(info).epochs == clip_adapter
    assert TaskRes.HParams().for_cell(info).epochs == taskres
    assert TaskRes.HParams(epochs=7).for_cell(info).epochs == 7
