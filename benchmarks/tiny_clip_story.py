"""What tiny-clip does on synthderm: names against symptoms, and a linear probe by shots.

Computed directly with the model, without vipbench's engine, so that the two can be held against
each other. `python benchmarks/train_tiny_clip.py --evaluate` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from vipbench.backbones.towers.clip_modules import CLIP
from vipbench.datasets import synthderm
from vipbench.symptoms import shipped_symptoms

SHOTS = (1, 2, 4, 8, 16)
PROBE_C = 0.316


def to_pixels(images: NDArray[np.uint8], preprocess: Mapping[str, Any]) -> Tensor:
    """(N,H,H,3) uint8 -> (N,3,H,H) normalised as the model expects."""
    mean, std = (torch.tensor(preprocess[k])[:, None, None] for k in ("mean", "std"))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - mean) / std


@torch.no_grad()
def image_features(model: CLIP, config: Mapping[str, Any], split: str) -> Tensor:
    """(N,D) features of a split of synthderm, not normalised."""
    count = len(synthderm.labels(split))
    images = np.stack([np.asarray(synthderm.render(split, i)) for i in range(count)])
    return model.encode_image(to_pixels(images, config["preprocess"]))


@torch.no_grad()
def text_features(model: CLIP, texts: Sequence[str]) -> Tensor:
    """(K,D) of unit length."""
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(list(texts))
    return normalize(model.encode_text(tokens), dim=-1)


def measure(
    model: CLIP, config: Mapping[str, Any], seeds: Sequence[int] = (1, 2, 3)
) -> dict[str, float]:
    """Accuracies in per cent on the 300 test images of synthderm."""
    labels = synthderm.labels("test")
    test = image_features(model, config, "test")
    unit = normalize(test, dim=-1)
    symptoms = shipped_symptoms("synthderm", synthderm.CLASS_NAMES)
    assert symptoms is not None

    def accuracy(predicted: NDArray[np.int64]) -> float:
        return 100.0 * float((predicted == labels).mean())

    template = synthderm.TEMPLATES[0]
    names = text_features(model, [template.format(n) for n in synthderm.CLASS_NAMES])
    similarities = [unit @ text_features(model, symptoms[n]).T for n in synthderm.CLASS_NAMES]
    figures = {
        "majority class": 100.0 / len(synthderm.CLASS_NAMES),
        "zero-shot names": accuracy((unit @ names.T).argmax(-1).numpy()),
        "symptoms mean": accuracy(
            torch.stack([s.mean(-1) for s in similarities], -1).argmax(-1).numpy()
        ),
        "symptoms max": accuracy(
            torch.stack([s.amax(-1) for s in similarities], -1).argmax(-1).numpy()
        ),
    }
    train = image_features(model, config, "train").numpy()
    train_labels = synthderm.labels("train")
    for shots in (*SHOTS, len(train) // len(synthderm.CLASS_NAMES)):
        runs = []
        for seed in seeds:
            rng = np.random.default_rng(seed)  # the same order for every k: nested supports
            order = [rng.permutation(np.flatnonzero(train_labels == c)) for c in range(6)]
            picked = np.concatenate([o[:shots] for o in order])
            probe = LogisticRegression(C=PROBE_C, max_iter=1000)
            probe.fit(train[picked], train_labels[picked])
            runs.append(accuracy(probe.predict(test.numpy())))
        figures[f"linear probe {shots}-shot"] = float(np.mean(runs))
    return figures
