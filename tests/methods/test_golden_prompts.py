"""CoOp, CoCoOp and ViP against figures from the official programs, trained by the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_util import DEVICE, golden_backbone, limit, load_golden
from vipbench.api import CellInfo, HParams, Method, Support, Task
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train
from vipbench.methods.cocoop import CoCoOp
from vipbench.methods.coop import CoOp
from vipbench.methods.vip import ViP


def task_of(golden: dict[str, Any]) -> Task:
    backbone = golden_backbone(golden)
    meta = golden["meta"]
    names = tuple(meta["classnames"])
    symptoms = meta.get("descriptions")
    info = CellInfo(
        16, len(golden["labels"]), len(names), "golden", backbone.dim, backbone.width, "toy"
    )
    return Task(
        image_backbone=backbone,
        class_names=names,
        templates=("a photo of a {}.",),
        symptoms=None if symptoms is None else tuple(tuple(symptoms[n]) for n in names),
        info=info,
        generator=cell_generator("golden", 16, 1),
    )


def method_of(golden: dict[str, Any], task: Task) -> tuple[Method, HParams, dict[str, str]]:
    """The method with the file's settings, and our parameter -> the file's."""
    meta = golden["meta"]
    epochs, batch, lr = meta["epochs"], meta["batch_size"], meta["base_lr"]
    cfg = next(iter(meta["cfg"].values()))
    ctx = "prompt_learner.ctx"
    if meta["trainer"].lower() == "coop":
        hparams = CoOp.HParams(
            n_ctx=cfg["N_CTX"], position=cfg["CLASS_TOKEN_POSITION"], class_specific=cfg["CSC"],
            context_init=cfg["CTX_INIT"], epochs=epochs, batch_size=batch, lr=lr,
        )  # fmt: skip
        return CoOp(task, hparams), hparams, {"context": ctx}
    if meta["trainer"].lower() == "cocoop":
        hparams = CoCoOp.HParams(
            n_ctx=cfg["N_CTX"], context_init=cfg["CTX_INIT"],
            epochs=epochs, batch_size=batch, lr=lr,
        )  # fmt: skip
        net = "prompt_learner.meta_net."
        names = {f"{layer}.{p}": f"{net}{layer}.{p}" for layer in ("linear1", "linear2")
                 for p in ("weight", "bias")}  # fmt: skip
        return CoCoOp(task, hparams), hparams, {"context": ctx, **names}
    hparams = ViP.HParams(
        n_ctx=cfg["N_CTX"], position=cfg["CLASS_TOKEN_POSITION"], class_specific=cfg["CSC"],
        epochs=epochs, batch_size=batch, lr=lr,
    )  # fmt: skip
    names = {"context": ctx, "query": "learnable_token",
             "w_q": "attn.q_proj.weight", "w_k": "attn.k_proj.weight"}  # fmt: skip
    return ViP(task, hparams), hparams, names


@pytest.mark.parametrize("case", ["coop_end", "coop_middle_csc", "cocoop_init", "vip_skin_end"])
def test_official_figures(case: str, shared: Path) -> None:
    golden = load_golden(shared / "golden" / f"{case}.npz")
    task = task_of(golden)
    method, hparams, names = method_of(golden, task)
    method.to(DEVICE)
    for ours, theirs in names.items():
        parameter = method.get_parameter(ours)
        start = torch.from_numpy(golden[f"init/{theirs}"]).reshape(parameter.shape)
        parameter.data = start.clone().to(DEVICE)
    assert set(names) == {name for name, _ in method.named_parameters()}
    x = torch.from_numpy(golden["image_features"]).to(DEVICE)
    with torch.no_grad():
        close(method.predict(x), golden["logits_init"], limit(1e-5))

    recipe = hparams.recipe(task.info)
    assert recipe is not None
    recipe = type(recipe)(**{**vars(recipe), "shuffle": False})
    support = Support(x, torch.from_numpy(golden["labels"]).to(DEVICE), task.n_classes, 16)
    cell = TrainCell(method, recipe, support, task.generator)
    train([cell])

    np.testing.assert_allclose(cell.losses, golden["losses"], atol=1e-4)
    with torch.no_grad():
        close(method.predict(x), golden["logits_final"], 1e-4)
    for ours, theirs in names.items():
        trained = method.get_parameter(ours).detach()
        close(trained, golden[f"final/{theirs}"].reshape(trained.shape), 1e-4)


def close(found: torch.Tensor, wanted: Any, atol: float) -> None:
    np.testing.assert_allclose(found.cpu(), wanted, atol=atol)
