"""Mean and maximum over symptoms: the official program's scores, and ragged classes by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.golden_util import limit, load_golden
from tests.methods.given import GivenTexts, generator, tensor
from vipbench import api
from vipbench.methods.symptoms_max import SymptomsMax
from vipbench.methods.symptoms_mean import SymptomsMean

METHODS: dict[str, type[api.Method]] = {"mean": SymptomsMean, "max": SymptomsMax}


class GivenSymptoms(GivenTexts):
    """Symptom texts are numbers, the rows of the given features; classes may be ragged."""

    def embed(self, texts: api.Texts) -> api.Prompts:
        most = max(len(row) for row in texts)
        rows = [[int(t) for t in row] for row in texts]  # type: ignore[arg-type]
        tokens = torch.tensor([row + [0] * (most - len(row)) for row in rows])
        mask = torch.tensor([[i < len(row) for i in range(most)] for row in rows])
        return api.Prompts(tokens.unsqueeze(-1), torch.ones_like(tokens), mask=mask).to(self.device)

    def encode_text(self, prompts: api.Prompts, context: Any = None, tap: Any = None) -> Any:
        return self.features[prompts.tokens[..., 0]]


def build(name: str, features: torch.Tensor, classes: Sequence[int], **hparams: Any) -> api.Method:
    backbone = GivenSymptoms(features)
    symptoms: list[list[str]] = [[] for _ in range(max(classes) + 1)]
    for row, label in enumerate(classes):
        symptoms[label].append(str(row))
    info = api.CellInfo(0, 0, len(symptoms), "given", backbone.dim, backbone.width, "toy")
    names = tuple(f"class {i}" for i in range(len(symptoms)))
    bound = tuple(map(tuple, symptoms))
    task = api.Task(backbone, names, ("{}",), bound, info, generator)
    method = METHODS[name]
    return method(task, method.HParams(**hparams))


@pytest.mark.parametrize("name", METHODS)
def test_official_figures(name: str, shared: Path) -> None:
    golden = load_golden(shared / "golden" / f"describe_{name}_a.npz")
    features = tensor(golden["description_features"])
    x = tensor(golden["test_features"])
    method = build(name, features, golden["description_class"].tolist(), compat="official")
    wanted = tensor(golden["class_scores"])
    torch.testing.assert_close(method.predict(x), wanted, atol=limit(1e-5), rtol=0)
    # The paper's form has the checkpoint's temperature, which moves no decision.
    scaled = build(name, features, golden["description_class"].tolist()).predict(x)
    torch.testing.assert_close(scaled, 100 * method.predict(x), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_ragged_classes(name: str) -> None:
    rng = torch.Generator().manual_seed(3)
    features, x = torch.randn(6, 8, generator=rng), torch.randn(5, 8, generator=rng)
    method = build(name, features, [0, 0, 0, 1, 2, 2], compat="official")
    cosine = F.normalize(x, dim=-1) @ F.normalize(features, dim=-1).T
    reduce = torch.mean if name == "mean" else torch.amax
    expected = torch.stack([reduce(cosine[:, part], -1) for part in ([0, 1, 2], [3], [4, 5])], -1)
    torch.testing.assert_close(method.predict(x), expected)
