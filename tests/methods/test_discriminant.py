"""Nearest class mean, Gaussian discriminant analysis, the cross-modal linear probe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.methods.given import accuracy, close, make, scores, toy
from vipbench.methods.cross_modal import CrossModal
from vipbench.methods.gda import GDA
from vipbench.methods.ncm import NCM


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def test_ncm_agrees_with_nearest_centroids_of_unit_features() -> None:
    backbone, support, test = toy(counts=(5, 4, 6))
    method, _ = make(NCM, backbone, support)
    method.prepare(support)
    means = torch.stack([unit(support.plain)[support.labels == c].mean(0) for c in range(3)])
    expected = torch.cdist(unit(test.x), unit(means)).argmin(1)
    np.testing.assert_array_equal(scores(method, test.x).argmax(1), expected)
    centred, _ = make(NCM, backbone, support, centre=True)
    centred.prepare(support)
    assert accuracy(centred, test) > 0.8


def test_ncm_never_predicts_a_class_that_it_has_not_seen() -> None:
    backbone, support, test = toy(counts=(5, 0, 6))
    method, _ = make(NCM, backbone, support)
    method.prepare(support)
    assert 1 not in scores(method, test.x).argmax(1)
    assert np.isfinite(scores(method, test.x)).all()


def test_gda_is_the_papers_formula() -> None:
    backbone, support, test = toy(counts=(6, 6, 6))
    plain = dataclasses.replace(support, n_views=0)
    method, recipe = make(GDA, backbone, plain, alpha=0.3)
    assert recipe is not None
    assert (recipe.epochs, recipe.views.count) == (0, 10)
    method.prepare(plain)
    x = unit(plain.plain).double().numpy()
    means = np.stack([x[plain.labels.numpy() == c].mean(0) for c in range(3)])
    centred = x - means[plain.labels.numpy()]
    sigma = np.cov(centred.T)
    inverse = x.shape[1] * np.linalg.inv((len(x) - 1) * sigma + np.trace(sigma) * np.eye(12))
    q = unit(test.x).double().numpy()
    gauss = q @ inverse @ means.T - 0.5 * np.diag(means @ inverse @ means.T) - np.log(3)
    text = 100 * q @ unit(backbone.features).double().numpy().T
    close(scores(method, test.x), text + 0.3 * gauss, 1e-3)


def test_gda_searches_alpha_on_validation_and_uses_every_view() -> None:
    backbone, support, test = toy(counts=(1, 1, 1))
    method, _ = make(GDA, backbone, support)
    method.prepare(support)
    method.finish(dataclasses.replace(support, val=test))
    found, best = float(method.alpha), accuracy(method, test)
    for alpha in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        method.alpha.fill_(alpha)
        assert accuracy(method, test) <= best
        if alpha < found * 0.9:
            assert accuracy(method, test) < best
    other, _ = make(GDA, backbone, support)
    other.prepare(dataclasses.replace(support, n_views=0))
    assert not torch.allclose(other.weight, method.weight)


def test_gda_with_one_image_and_one_view_a_class_and_with_an_absent_class() -> None:
    for counts in ((1, 1, 1), (4, 0, 1)):
        backbone, support, test = toy(counts=counts)
        method, _ = make(GDA, backbone, dataclasses.replace(support, n_views=0))
        method.prepare(dataclasses.replace(support, n_views=0))
        assert np.isfinite(scores(method, test.x)).all()
        assert accuracy(method, test) > 0.6


@pytest.mark.parametrize("settings", [(1e-3, 0.01), (1e-4, 0.0)])
def test_the_cross_modal_probe_is_adamw_on_the_joint_batches(
    settings: tuple[float, float],
) -> None:
    backbone, support, test = toy()
    lr, decay = settings
    method, _ = make(
        CrossModal, backbone, support, lr=lr, weight_decay=decay, iterations=40, warmup=5
    )
    images, texts = method._rows("images", 9, 4), method._rows("texts", 3, 4)
    method.fit(support)

    weight = torch.nn.Parameter(unit(backbone.features).clone())
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=decay)
    for step in range(40):
        i, t = next(images), next(texts)
        x = torch.cat([unit(support.plain)[i], unit(backbone.features)[t]])
        rate = lr * 0.5 * (1 + np.cos(np.pi * (step - 5) / 35))
        optimizer.param_groups[0]["lr"] = rate if step >= 5 else 1e-5 + (lr - 1e-5) * step / 5
        loss = torch.nn.functional.cross_entropy(
            100 * x @ weight.T, torch.cat([support.labels[i], t])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(method.weight, weight.detach(), 1e-5)
    assert accuracy(method, test) > 0.8


def test_the_cross_modal_probe_chooses_on_validation() -> None:
    backbone, support, test = toy(counts=(4, 0, 2))
    found = {}
    for best_val in (False, True):
        chosen = dataclasses.replace(support, val=test, best_val=best_val)
        method, _ = make(CrossModal, backbone, support, iterations=300)
        method.fit(chosen)
        found[best_val] = accuracy(method, test)
        assert float(method.chosen[0]) in (pytest.approx(1e-3), pytest.approx(1e-4))
    assert found[True] >= found[False] > 0.6
