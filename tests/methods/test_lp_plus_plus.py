"""LP++."""

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
    support_of,
    tensor,
    toy,
    validation,
)
from vipbench import api
from vipbench.methods.lp_plus_plus import LPPlusPlus


def fitted(golden: dict[str, Any], **hparams: Any) -> api.Method:
    support = support_of(golden)
    more = {}
    if hparams:
        more = {"val": validation(golden), "best_val": True}
    support = dataclasses.replace(support, **more)
    hyper = golden["meta"]["hyper"]
    method, recipe = make(
        LPPlusPlus, given(golden), support,
        iterations=hyper["epochs"], momentum=hyper["momentum"], **hparams,
    )  # fmt: skip
    assert recipe is None
    assert api.has_own_fit(LPPlusPlus)
    with torch.no_grad():
        method.head.bias.copy_(tensor(golden["init/classifier.bias"]))
    method.prepare(support)
    close(method.head.weight, golden["init/classifier.weight"], 1e-5)
    close(method.alpha, golden["init/alpha_vec"][0], 1e-4)
    close(scores(method, golden["test_features"]), golden["logits_init"])
    method.fit(support)
    return method


def test_the_recorded_figures(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "lpp_a.npz")
    method = fitted(golden)
    close(method.alpha, golden["final/alpha_vec"][0])
    close(method.head.weight, golden["final/classifier.weight"], 5e-4)
    close(scores(method, golden["test_features"]), golden["logits_final"], 1.6e-3)


def test_the_run_that_selects_by_validation_keeps_the_best_iteration(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "lpp_a.npz")
    for compat in ("paper", "official"):
        method = fitted(golden, compat=compat)
        right = (scores(method, golden["val_features"]).argmax(1) == golden["val_labels"]).mean()
        assert 100 * right == pytest.approx(golden["val_acc"].max(), abs=1e-3)
    # The official program takes the last of ties and reports its test accuracy.
    right = (scores(method, golden["test_features"]).argmax(1) == golden["test_labels"]).mean()
    assert 100 * right == pytest.approx(float(golden["test_acc_at_best_val"]), abs=1e-3)


def test_without_selection_validation_images_change_nothing() -> None:
    backbone, support, test = toy()
    ends = []
    for given_support in (support, dataclasses.replace(support, val=test)):
        method, _ = make(LPPlusPlus, backbone, support, iterations=30)
        method.prepare(given_support)
        method.fit(given_support)
        ends.append(scores(method, test.x))
    np.testing.assert_array_equal(*ends)


def test_unbalanced_support_sets_and_more_images_than_dimensions() -> None:
    backbone, support, test = toy(counts=(20, 0, 3))
    method, _ = make(LPPlusPlus, backbone, support)
    method.prepare(support)
    assert not method.head.weight[1].any()
    method.fit(support)
    assert np.isfinite(scores(method, test.x)).all()
    assert accuracy(method, test) > 0.6
