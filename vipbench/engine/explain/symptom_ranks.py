"""How well each symptom alone tells its class, on the training set, and what its class loses
without it. Test images are not looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from vipbench.api import Backbone
from vipbench.engine.features.features import Features
from vipbench.engine.planning.loading import LoadedBackbone, LoadedDataset, users
from vipbench.errors import UsageError


@dataclass(frozen=True)
class RankedSymptom:
    """auroc: of the symptom's cosine, its class against the others. loss: by how much the AUROC
    of the class's mean cosine over its symptoms falls when this one is taken out (NaN where it is
    the only one)."""

    class_name: str
    symptom: str
    auroc: float
    loss: float


def rank_symptoms(data: LoadedDataset, backbone: LoadedBackbone) -> list[RankedSymptom]:
    """All symptoms of all classes, the best of each class first. Raises UsageError."""
    towers = backbone.backbone
    if not isinstance(towers, Backbone):
        raise UsageError(f"'{towers.name}' has no text tower; choose a backbone with one")
    if data.symptoms is None:
        name = data.dataset.name
        raise UsageError(f"'{name}' has no symptoms; give --symptoms {name}=FILE")
    train = data.splits["train"]
    features = Features(towers, data.splits, data.fingerprint, plugins=users(data, backbone))
    x = F.normalize(features.plain("train", range(len(train))), dim=-1)
    found = []
    for label, (name, texts) in enumerate(
        zip(data.dataset.class_names, data.symptoms, strict=True)
    ):
        with torch.no_grad():
            t = F.normalize(towers.encode_text(towers.embed(list(texts))), dim=-1)
        scores = (x @ t.T).cpu().double().numpy()  # (N,K)
        own = train.labels == label
        whole = auroc(scores.mean(1), own)
        rows = []
        for k, text in enumerate(texts):
            rest = np.delete(scores, k, axis=1)
            loss = whole - auroc(rest.mean(1), own) if rest.shape[1] else float("nan")
            rows.append(RankedSymptom(name, text, auroc(scores[:, k], own), loss))
        found += sorted(rows, key=lambda r: -r.auroc)
    return found


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve (Mann and Whitney's U), ties counted half. scores, positive (N,)."""
    ranks = rankdata(scores)
    n, p = len(scores), int(positive.sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))
