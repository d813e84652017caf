"""Image methods trained by the engine on the golden files' towers, and held to their figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden_util import DEVICE, golden_backbone, limit, load_golden
from vipbench import api
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train

# Our parameter -> the file's, with an index into ours where it holds several of theirs.
Names = Mapping[tuple[str, Any], str]


def images(array: Any) -> torch.Tensor:
    return (torch.from_numpy(array).float().to(DEVICE) - 128) / 64


def golden_task(golden: dict[str, Any], shots: int | None = None) -> api.Task:
    backbone = golden_backbone(golden)
    names = tuple(golden["meta"]["classnames"])
    info = api.CellInfo(
        shots, len(golden["labels"]), len(names), "golden", backbone.dim, backbone.width, "toy"
    )
    return api.Task(
        backbone, names, ("a photo of a {}.",), None, info, cell_generator("golden", 16, 1)
    )


def hold_to_figures(
    file: Path,
    method_class: type[api.Method],
    hparams: Mapping[str, Any],
    names: Names,
    shots: int | None = None,
) -> tuple[api.Method, TrainCell, dict[str, Any]]:
    """Build, start from the recorded values, train, and compare everything that is recorded."""
    golden = load_golden(file)
    task = golden_task(golden, shots)
    chosen = method_class.HParams(**hparams).for_cell(task.info)
    method = method_class(task, chosen).to(DEVICE)
    with torch.no_grad():
        for (name, index), theirs in names.items():
            part = method.get_parameter(name)[index]
            part.copy_(torch.from_numpy(golden[f"init/{theirs}"]).reshape(part.shape))
    seen = {name for name, _ in names}
    left = {n for n, p in method.named_parameters() if p.numel()} - seen
    assert not left, f"{left} start from no recorded value"
    for name, shape in method.noise().items():
        setattr(method, name, torch.zeros(shape, device=DEVICE))
    test = images(golden["test_images_u8"])
    close(predict(method, test), golden["logits_init"])

    recipe = chosen.recipe(task.info)
    assert recipe is not None
    x, labels = images(golden["images_u8"]), torch.from_numpy(golden["labels"]).long().to(DEVICE)
    support = api.Support(x, labels, task.n_classes, shots)
    cell = TrainCell(method, dataclasses.replace(recipe, shuffle=False), support, task.generator)
    train([cell])
    close(np.array(cell.losses), golden["losses"])
    close(predict(method, test), golden["logits_final"])
    for (name, index), theirs in names.items():
        part = method.get_parameter(name)[index].detach().cpu().numpy()
        close(part, golden[f"final/{theirs}"].reshape(part.shape))
    return method, cell, golden


def predict(method: api.Method, x: torch.Tensor) -> Any:
    method.eval()
    with torch.no_grad():
        scores = method.predict(x).cpu().numpy()
        np.testing.assert_allclose(method(x).cpu().numpy(), scores, rtol=0, atol=limit(1e-5))
    method.train()
    return scores


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def text_and_vision_prompts(depth_text: int, depth_vision: int) -> dict[tuple[str, Any], str]:
    """Names of the independent prompts of IVLP and PromptSRC."""
    blocks = "transformer.resblocks"
    names: dict[tuple[str, Any], str] = {
        ("context", ...): "prompt_learner.ctx",
        ("vision", 0): "image_encoder.VPT",
    }
    for i in range(1, depth_text):
        names["deep", i - 1] = f"text_encoder.{blocks}.{i}.VPT_shallow"
    for i in range(1, depth_vision):
        names["vision", i] = f"image_encoder.{blocks}.{i}.VPT_shallow"
    return names
