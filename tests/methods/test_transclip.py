"""TransCLIP, zero-shot and few-shot, and its solver on given prototypes and predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_util import load_golden
from tests.methods.given import (
    GivenTexts,
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
from vipbench.methods.shared.transclip import solve
from vipbench.methods.transclip import TransCLIP
from vipbench.methods.transclip_fs import TransCLIPFS


def settings(golden: dict[str, Any]) -> dict[str, Any]:
    hyper = golden["meta"]["hyper"]
    names = ("max_iter", "inner_iter", "n_neighbors", "n_most_confident")
    return {"text_weight": float(hyper["lambda_"]), **{name: hyper[name] for name in names}}


@pytest.mark.parametrize("case", ["transclip_zs_a", "transclip_proto_a"])
def test_the_recorded_figures_of_zero_shot(shared: Path, case: str) -> None:
    golden = load_golden(shared / "golden" / f"{case}.npz")
    backbone = given(golden)
    if "initial_prototypes" in golden:
        backbone = GivenTexts(tensor(golden["initial_prototypes"]).T.contiguous())
    method, recipe = make(TransCLIP, backbone, classes=5, **settings(golden))
    assert recipe is None
    z = np.exp(scores(method, golden["query_features"]))
    close(z, golden["z_final"], 2e-5)


def test_the_recorded_figures_on_given_predictions(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "transclip_pred_a.npz")
    q = torch.nn.functional.normalize(tensor(golden["query_features"]), dim=-1)
    y = tensor(golden["initial_predictions"])
    (moving,) = solve(q, y, None, (0.0,), moving=True, **settings(golden))
    close(moving, golden["z_final"], 2e-5)
    (held,) = solve(q, y, None, (0.0,), **settings(golden))
    assert np.abs(held.cpu().numpy() - golden["z_final"]).max() > 0.5  # the quirk matters


def few_shot(golden: dict[str, Any], **hparams: Any) -> TransCLIPFS:
    support = support_of(golden)
    hyper = golden["meta"]["hyper"]
    method, _ = make(
        TransCLIPFS, given(golden), support,
        gammas=",".join(map(str, hyper["gammas"])), **settings(golden), **hparams,
    )  # fmt: skip
    method.prepare(support)
    assert isinstance(method, TransCLIPFS)
    return method


def test_the_recorded_figures_of_few_shot(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "transclip_fs_a.npz")
    official = few_shot(golden, compat="official")
    close(np.exp(scores(official, golden["query_features"])), golden["z_final"], 2e-5)
    official.prepare(dataclasses.replace(support_of(golden), val=validation(golden)))
    right = scores(official, golden["query_features"]).argmax(1) == golden["query_labels"]
    assert 100 * right.mean() == pytest.approx(float(golden["test_acc_at_best_val"]), abs=1e-3)
    # The right pairing of rows moves the assignments by about a tenth here.
    paper = few_shot(golden, gamma=0.2)
    difference = np.abs(np.exp(scores(paper, golden["query_features"])) - golden["z_final"]).max()
    assert 0.01 < difference < 0.5


def test_it_gains_over_zero_shot_and_scores_are_log_probabilities() -> None:
    backbone, support, test = toy(scale=100.0)
    zero_shot = accuracy(make(TransCLIP, backbone, support, max_iter=0, inner_iter=0)[0], test)
    method, _ = make(TransCLIPFS, backbone, support)
    method.prepare(support)
    assert accuracy(method, test) >= zero_shot
    np.testing.assert_allclose(np.exp(scores(method, test.x)).sum(1), 1, atol=1e-5)


def test_an_absent_class_fewer_images_than_neighbours_and_a_bad_list() -> None:
    backbone, support, test = toy(counts=(4, 0, 1))
    for count in (60, 3, 1):
        for built in (make(TransCLIP, backbone, support), make(TransCLIPFS, backbone, support)):
            built[0].prepare(support)
            assert np.isfinite(scores(built[0], test.x[:count])).all()
    with pytest.raises(ValueError, match=r"numbers.*commas"):
        TransCLIPFS.HParams(gammas=" ")
