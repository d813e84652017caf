"""Tip-Adapter and Tip-Adapter-F."""

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
    validation,
)
from vipbench.methods.tip_adapter import TipAdapter
from vipbench.methods.tip_adapter_f import TipAdapterF


def grid(hyper: dict[str, Any]) -> dict[str, Any]:
    return {
        "alpha": hyper["alpha"],
        "beta": hyper["beta"],
        "passes": hyper["augment_epoch"],
        "scale_beta": hyper["search_scale"][0],
        "scale_alpha": hyper["search_scale"][1],
        "steps_beta": hyper["search_step"][0],
        "steps_alpha": hyper["search_step"][1],
    }


def test_the_recorded_figures_of_tip_adapter(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "tip_a.npz")
    bank = tensor(golden["aug_features"])
    support = support_of(golden, get_view=bank.__getitem__, n_views=len(bank))
    method, recipe = make(TipAdapter, given(golden), support, **grid(golden["meta"]["hyper"]))
    assert recipe is not None
    assert (recipe.epochs, recipe.views.count) == (0, len(bank))
    method.prepare(support)
    close(method.keys, golden["cache_keys"].T, 1e-6)
    close(scores(method, golden["test_features"]), golden["logits_final"])
    close(scores(method, golden["val_features"]), golden["val_logits_tip"])
    method.finish(dataclasses.replace(support, val=validation(golden)))
    close([float(method.beta), float(method.alpha)], golden["search_tip_beta_alpha"], 1e-6)


def test_the_recorded_figures_of_tip_adapter_f(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(shared / "golden" / "tipf_a.npz")
    hyper = golden["meta"]["hyper"]
    plain, bank = tensor(golden["support_features"]), tensor(golden["aug_features"])
    epochs, batch = hyper["train_epoch"], hyper["batch_size"]
    views = [plain] * epochs + list(bank)
    support = support_of(golden, get_view=views.__getitem__, n_views=len(views))
    method, recipe = make(
        TipAdapterF, given(golden), support, epochs=epochs, batch_size=batch, lr=hyper["lr"],
        **grid(hyper),
    )  # fmt: skip
    assert recipe is not None
    assert recipe.views.count == len(views)
    method.prepare(support)
    close(method.keys, golden["init/adapter.weight"], 1e-6)
    close(scores(method, golden["test_features"]), golden["logits_init"])
    close(scores(method, golden["test_features"]), golden["logits_tip"])
    constants = float(method.beta), float(method.alpha)
    method.finish(dataclasses.replace(support, val=validation(golden)))
    close([float(method.beta), float(method.alpha)], golden["search_tip_beta_alpha"], 1e-6)
    method.beta.fill_(constants[0])
    method.alpha.fill_(constants[1])
    padded = [np.pad(rows, (0, -len(rows) % batch), mode="edge") for rows in golden["epoch_order"]]
    rows = np.concatenate([order.reshape(-1, batch) for order in padded])
    cell = train(method, recipe, support, rows, monkeypatch)
    close(cell.losses, golden["losses"])
    close(method.keys, golden["final/adapter.weight"])
    close(scores(method, golden["test_features"]), golden["logits_final"])


def test_no_validation_keeps_the_constants_and_no_view_takes_the_plain_features() -> None:
    backbone, support, test = toy()
    plain = dataclasses.replace(support, n_views=0, get_view=None)
    method, _ = make(TipAdapter, backbone, plain, alpha=2.0, beta=3.0)
    method.prepare(plain)
    method.finish(plain)
    assert (float(method.alpha), float(method.beta)) == (2.0, 3.0)
    close(method.keys, torch.nn.functional.normalize(plain.plain, dim=-1), 1e-7)
    assert accuracy(method, test) > 0.8


def test_the_search_takes_the_first_of_equally_good_pairs() -> None:
    backbone, support, test = toy(scale=1.0)
    method, _ = make(TipAdapter, backbone, support, steps_beta=5, steps_alpha=5)
    method.prepare(support)
    method.finish(dataclasses.replace(support, val=test))
    found = float(method.beta), float(method.alpha)
    best = accuracy(method, test)
    for i in range(5):
        for j in range(5):
            beta, alpha = i * 6.9 / 5 + 0.1, j * 2.9 / 5 + 0.1
            method.beta.fill_(beta)
            method.alpha.fill_(alpha)
            earlier = (beta, alpha) < (found[0] - 1e-6, found[1] - 1e-6)
            assert accuracy(method, test) < best if earlier else accuracy(method, test) <= best


def test_unbalanced_support_sets_with_an_absent_class() -> None:
    backbone, support, test = toy(counts=(5, 0, 2))
    for method_class in (TipAdapter, TipAdapterF):
        method, _ = make(method_class, backbone, support)
        method.prepare(support)
        assert np.isfinite(scores(method, test.x)).all()


def test_cells_of_tip_adapter_f_stack() -> None:
    stacked_equals_looped(TipAdapterF, epochs=3, batch_size=4)
