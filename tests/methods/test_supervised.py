"""The supervised baseline: what is trained, from where, and batch normalisation's statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.backbones.clips import random_backbone
from tests.methods.image_tasks import NAMES, fit, make, scores, toy_images, toy_task
from vipbench import api
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train
from vipbench.methods.supervised import Supervised
from vipbench.plugins.registry import load_registry


def timm(argument: str) -> api.ImageBackbone:
    return load_registry().backbone(f"timm:{argument}")[0]


def accuracy(method: Any) -> float:
    found, labels = scores(method, per_class=20)
    return (found.argmax(1) == labels).float().mean().item()


def test_all_weights_from_pretrained_ones() -> None:
    backbone = random_backbone()
    before = {k: v.clone() for k, v in backbone._model.state_dict().items()}
    method = make(Supervised, backbone)
    assert method.hparams.lr == 1e-4
    pixels, _ = toy_images(2, 32)
    torch.testing.assert_close(method.tower.eval()(pixels), backbone.encode_image(pixels))
    start = {k: v.clone() for k, v in method.named_parameters()}
    losses = fit(method, epochs=8, lr=1e-3)
    assert losses[-1] < losses[0]
    moved = [k for k, v in method.named_parameters() if not torch.equal(v, start[k])]
    assert {"head.weight", "tower.conv1.weight", "tower.proj"} <= set(moved)
    for name, value in backbone._model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_head_leaves_the_tower_alone() -> None:
    method = make(Supervised, random_backbone(), train="head")
    assert {name for name, _ in method.named_parameters()} == {"head.weight", "head.bias"}
    fit(method, epochs=60, lr=1e-2)
    assert accuracy(method) > 0.8


def test_random_starts_follow_the_seed() -> None:
    backbone = random_backbone()
    first, again, other = (
        make(Supervised, backbone, pretrained=False, seed=seed) for seed in (1, 1, 2)
    )
    weights = [m.tower.conv1.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], backbone._model.visual.conv1.weight)


def test_a_convolutional_tower_keeps_the_statistics_it_gathered() -> None:
    backbone = timm("test_resnet+random")
    method = make(Supervised, backbone, pretrained=False, image_size=32)
    norms = [m for m in method.tower.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(m.running_mean is not None and not m.running_mean.any() for m in norms)
    fit(method, epochs=12, lr=2e-3)
    assert all(m.running_mean is not None and m.running_mean.any() for m in norms)
    assert accuracy(method) > 0.6
    together, _ = scores(method, per_class=2)
    x, _ = toy_images(2, backbone.image_size, seed=9)
    with torch.no_grad():
        alone = torch.cat([method.predict(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_the_best_epochs_statistics_come_with_its_weights() -> None:
    """Validation accuracy, measured again at the end, is the best that the history knows."""
    backbone = timm("test_resnet+random")
    method = make(Supervised, backbone, pretrained=False, image_size=32, epochs=6, lr=5e-3)
    x, labels = toy_images(4, backbone.image_size)
    val = api.Labelled(*toy_images(9, backbone.image_size, seed=5))
    support = api.Support(x, labels, 3, 4, val=val, best_val=True)
    recipe = method.hparams.recipe(method.task.info)
    cell = TrainCell(method, recipe, support, method.task.generator, best_val=True)
    method.train()
    train([cell])
    method.eval()
    with torch.no_grad():
        found = (method.predict(val.x).argmax(1) == val.labels).float().mean().item()
    assert found == max(entry["val_accuracy"] for entry in cell.history)


def test_sizes() -> None:
    vit = make(Supervised, random_backbone(), image_size=16)
    assert vit.side is None
    clips = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}
    one_size = make(Supervised, random_backbone(vision_cfg=clips), image_size=32)
    assert one_size.side is None
    assert one_size(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    resnet = timm("test_resnet+random")
    assert make(Supervised, resnet, pretrained=False, image_size=4096).side is None
    seen = []
    method = make(Supervised, resnet, pretrained=False, image_size=40).eval()
    method.tower.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[-1]))
    method(torch.zeros(1, 3, resnet.image_size, resnet.image_size))
    assert seen == [40]


def test_the_quick_profile() -> None:
    info = toy_task(random_backbone()).info
    quick = Supervised.HParams().for_cell(info).quick(info)
    assert (quick.epochs, quick.image_size) == (10, 64)
    small = Supervised.HParams(epochs=3, image_size=32).for_cell(info).quick(info)
    assert (small.epochs, small.image_size) == (3, 32)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="train=all"):
        Supervised.HParams(train="head", pretrained=False)
    with pytest.raises(api.UnsupportedError, match=r"pretrained=off"):
        make(Supervised, timm("test_resnet+random"))
    assert len(NAMES) == 3
