"""Methods with images in the loop on other libraries' towers, and where they cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones import hub_models
from tests.backbones.clips import random_backbone
from tests.backbones.test_openclip_dual import save
from tests.methods.image_tasks import fit, make, scores
from vipbench import api
from vipbench.engine.planning.cells import impossible_pair
from vipbench.engine.planning.loading import load_dataset
from vipbench.methods.cliplora import CLIPLoRA
from vipbench.methods.ivlp import IVLP
from vipbench.methods.maple import MaPLe
from vipbench.methods.promptsrc import PromptSRC
from vipbench.methods.vpt import VPT
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec

METHODS = (VPT, MaPLe, IVLP, PromptSRC, CLIPLoRA)
SAVERS = {
    "siglip": lambda folder: hub_models.save_siglip(folder),
    "siglip2": lambda folder: hub_models.save_siglip(folder, two=True),
    "bert": lambda folder: hub_models.save_dual(folder),
    "coca": lambda folder: save("coca", folder),
}


@pytest.fixture(scope="module", params=SAVERS)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("towers") / request.param
    SAVERS[request.param](folder)
    library = "openclip:local-dir" if request.param == "coca" else "transformers"
    made = load_registry().backbone(f"{library}:{folder}")[0]
    made.logit_scale = 30.0  # random weights have a random one
    return made


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_parameter_is_trained(backbone: Any, method: type[api.Method]) -> None:
    hparams: dict[str, Any] = {"context_init": ""} if method in (MaPLe, IVLP, PromptSRC) else {}
    if method is PromptSRC:
        hparams |= {"templates": "dataset"}
    made = make(method, backbone, **hparams)
    start = {name: p.detach().clone() for name, p in made.named_parameters()}
    recipe = {"iterations": 5} if method is CLIPLoRA else {"epochs": 5}
    losses = fit(made, lr=0.01, batch_size=None, **recipe)
    assert min(losses[1:]) < losses[0]
    still = [n for n, p in made.named_parameters() if p.numel() and torch.equal(p, start[n])]
    assert not still
    found, _ = scores(made, per_class=2)
    assert found.isfinite().all()
    assert found.std() > 0


def test_context_starts_where_a_text_starts(tmp_path: Path) -> None:
    """SigLIP's texts have no start token: the deep rows replace the very first ones."""
    hub_models.save_siglip(tmp_path)
    siglip = load_registry().backbone(f"transformers:{tmp_path}")[0]
    assert make(IVLP, siglip, context_init="").first == 0
    assert make(IVLP, random_backbone(), context_init="").first == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_convolutional_tower_is_refused_before_anything_runs(method: type[api.Method]) -> None:
    resnet = random_backbone(
        vision_cfg={"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}
    )
    spec = RunSpec.parse({"methods": "zero-shot"})
    data = load_dataset(load_registry(), spec, "synthderm")
    reason = impossible_pair(method, resnet, data)
    assert reason is not None
    assert re.search(f"'{re.escape(method.name)}'.*transformer.*'random'", reason)
    with pytest.raises(api.UnsupportedError, match="transformer"):
        resnet.encode_image(torch.zeros(1, 3, 64, 64), api.NoTap())
