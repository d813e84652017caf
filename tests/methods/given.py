"""What the golden tests of methods on features share: a text side whose features are given, the
engine's way with one cell, and recorded orders of batches."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.golden_util import DEVICE, limit
from vipbench import api
from vipbench.engine.training import trainer as training
from vipbench.engine.training.batches import schedule
from vipbench.engine.training.stacking import TrainCell


def generator(purpose: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:7], "little")
    return torch.Generator().manual_seed(seed)


class GivenTexts(api.Backbone):
    """The features of the class texts are given: the files of adapters hold no towers."""

    name, fingerprint, image_size = "given", "given", 0
    vision_width, vision_layers, text_layers, context_length = None, 0, 0, 77
    device = DEVICE

    def __init__(self, features: torch.Tensor, logit_scale: float = 100.0) -> None:
        self.features, self.logit_scale = features, logit_scale
        self.dim = self.width = features.shape[1]

    def embed(self, texts: api.Texts) -> api.Prompts:
        n = len(texts)
        return api.Prompts(torch.arange(n).unsqueeze(1), torch.ones(n, dtype=torch.long))

    def encode_text(
        self, prompts: api.Prompts, context: torch.Tensor | None = None, tap: Any = None
    ) -> torch.Tensor:
        return self.features[prompts.tokens[:, 0]]

    def to(self, device: Any) -> None: ...

    def preprocess(self, image: Any) -> Any: ...

    def encode_image(self, pixels: Any, tap: Any = None) -> Any: ...

    def trainable_copy(self, pretrained: bool = True) -> Any: ...

    def embed_words(self, words: str) -> Any: ...


def tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).to(DEVICE)


def given(golden: dict[str, Any]) -> GivenTexts:
    """The backbone of a golden file of features."""
    if "text_prototypes" in golden:
        features = tensor(golden["text_prototypes"]).T.contiguous()
    else:
        features = tensor(golden["text_features"])
    return GivenTexts(features, float(np.exp(golden["meta"]["hyper"].get("logit_scale_log", 0.0))))


def toy(
    counts: tuple[int, ...] = (3, 3, 3), dim: int = 12, scale: float = 20.0, seed: int = 0
) -> tuple[GivenTexts, api.Support, api.Labelled]:
    """Features around the class texts: backbone, support set, test set (20 of each class)."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), dim, generator=rng)

    def around(labels: torch.Tensor) -> torch.Tensor:
        return 3 * (centres[labels] + 0.4 * torch.randn(len(labels), dim, generator=rng))

    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    test = torch.arange(len(counts)).repeat(20)
    texts = 2 * (centres + 0.8 * torch.randn(len(counts), dim, generator=rng))
    x = around(labels)
    bank = torch.stack([x + 0.1 * torch.randn(x.shape, generator=rng) for _ in range(4)])
    support = api.Support(
        x, labels, len(counts), max(counts), get_view=bank.__getitem__, n_views=len(bank)
    )
    return GivenTexts(texts, scale), support, api.Labelled(around(test), test)


def make(
    method: type[api.Method],
    backbone: api.ImageBackbone,
    support: api.Support | None = None,
    classes: int | tuple[str, ...] | None = None,
    **hparams: Any,
) -> tuple[api.Method, api.Recipe | None]:
    """The method with the paper's settings, but for `hparams`, and its recipe."""
    if classes is None:
        assert support is not None
        classes = support.n_classes
    names = tuple(f"class {i}" for i in range(classes)) if isinstance(classes, int) else classes
    info = api.CellInfo(
        shots=None if support is None else support.shots,
        n_support=0 if support is None else len(support.labels),
        n_classes=len(names),
        backbone=backbone.name,
        dim=backbone.dim,
        width=backbone.width if isinstance(backbone, api.Backbone) else 0,
        dataset="toy",
    )
    chosen = method.HParams(**hparams).for_cell(info)
    task = api.Task(backbone, names, ("a photo of a {}.",), None, info, generator)
    return method(task, chosen).to(task.device), chosen.recipe(info)


def support_of(golden: dict[str, Any], prefix: str = "support", **more: Any) -> api.Support:
    features = tensor(golden[f"{prefix}_features"])
    labels = tensor(golden[f"{prefix}_labels"]).long()
    shots = golden["meta"]["hyper"].get("shots")
    return api.Support(features, labels, int(labels.max()) + 1, shots, **more)


def validation(golden: dict[str, Any]) -> api.Labelled:
    return api.Labelled(tensor(golden["val_features"]), tensor(golden["val_labels"]).long())


def train(
    method: api.Method,
    recipe: api.Recipe,
    support: api.Support,
    rows: npt.NDArray[np.int64] | None = None,
    monkeypatch: Any = None,
) -> TrainCell:
    """Training by the engine, batches in stored order, or of the recorded `rows` (steps,B)."""
    cell = TrainCell(method, dataclasses.replace(recipe, shuffle=False), support, generator)
    if rows is not None:
        plan = dataclasses.replace(schedule(cell), rows=torch.from_numpy(np.array(rows)).long())
        assert plan.weight.shape == plan.rows.shape
        monkeypatch.setattr(training, "schedule", lambda cell: plan)
    method.train()
    training.train([cell])
    method.eval()
    return cell


def scores(method: api.Method, x: Any) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(method.predict(torch.as_tensor(x).to(DEVICE)).cpu())


def close(found: Any, wanted: Any, atol: float = 1e-4) -> None:
    found, wanted = (
        value.detach().cpu() if isinstance(value, torch.Tensor) else value
        for value in (found, wanted)
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=limit(atol))


def stacked_equals_looped(method: type[api.Method], **hparams: Any) -> None:
    """Two cells of different support sets and rates train as one and end as they do alone."""
    ends: list[list[torch.Tensor]] = []
    for together in (False, True):
        cells = []
        for seed, lr in ((0, 1.0), (1, 0.5)):
            _, support, _ = toy(seed=seed)
            backbone, _, _ = toy()
            built, recipe = make(method, backbone, support, **hparams)
            built.prepare(support)
            assert recipe is not None
            recipe = dataclasses.replace(recipe, lr=recipe.lr * lr)
            cells.append(TrainCell(built, recipe, support, generator))
        if together:
            assert training_can_stack(cells)
            training.train(cells)
        else:
            for cell in cells:
                training.train([cell])
        ends.append([p.detach() for cell in cells for p in cell.method.parameters()])
    for alone, with_other in zip(*ends, strict=True):
        torch.testing.assert_close(alone, with_other, rtol=1e-5, atol=1e-5)


def training_can_stack(cells: list[TrainCell]) -> bool:
    from vipbench.engine.training.stacking import can_stack

    return can_stack(cells)


def accuracy(method: api.Method, test: api.Labelled) -> float:
    return float((scores(method, test.x).argmax(1) == test.labels.numpy()).mean())
