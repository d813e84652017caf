"""PromptSRC, self-regulating prompts (Khattak et al., ICCV 2023, arXiv 2307.06948).

Independent prompts in both towers (as IVLP), and three regularisers: the L1 distance of text and
image features to those of the frozen towers (equation 3) and the Kullback-Leibler divergence of
the logits (equation 4), weights 25, 10 and 1, means over all entries; a Gaussian-weighted mean of
the epochs' prompts (equation 6); and a teacher whose texts are the mean of the features of 60
ImageNet templates.
Published settings: 4 rows in 9 layers, SGD 2.5e-3, batch 4; few-shot 50 epochs, μ 30, σ 30;
base-to-new 20 epochs, μ 15, σ 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.ivlp import IVLP

# setting -> epochs, μ, σ.
_SETTINGS = {"few-shot": (50, 30.0, 30.0), "base-to-new": (20, 15.0, 1.0)}

# The teacher's templates, 60 of those that CLIP's authors give for ImageNet: frame -> fillings.
_TEMPLATES = {
    "a {} photo of a": "bad, bright, low resolution, cropped, jpeg corrupted, blurry, pixelated, "
    "close-up",
    "a {} photo of the": "bad, bright, low resolution, cropped, dark, black and white, blurry, "
    "pixelated, good, close-up",
    "a photo of {}": "a, the, many, my, one, a hard to see, the hard to see, a clean, the clean, "
    "a dirty, the dirty, a large, a nice, a weird, the cool",
    "a {} of a": "sculpture, rendering, tattoo, drawing, painting, rendition, doodle, sketch",
    "a {} of the": "sculpture, rendering, painting, rendition, doodle, sketch",
    "{}": "graffiti of a, art of a, itap of the, a plastic, a origami, a cartoon, a embroidered, "
    "the plastic, the origami, the embroidered, the toy",
}
_SCENES = ("a {} in a video game.", "the {} in a video game.")


def imagenet_templates() -> list[str]:
    """The teacher's 60 templates."""
    filled = [
        f"{frame.format(filling)} {{}}."
        for frame, fillings in _TEMPLATES.items()
        for filling in fillings.split(", ")
    ]
    return [*filled, *_SCENES]


class PromptSRC(IVLP):
    """Independent prompts in both towers, held near the frozen towers; averaged over epochs."""

    name = "promptsrc"
    paper = "Khattak et al., Self-regulating Prompts: Foundational Model Adaptation"
    year = 2023
    pads = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """setting: which of the paper's settings fills in epochs, average_mean (μ) and
        average_std (σ) where they are None. n_ctx_*, depth_*, context_init: as for IVLP.
        text_weight, image_weight, logits_weight: of the regularisers. templates: the teacher's
        texts, the paper's 60 or the dataset's own."""

        setting: Literal["few-shot", "base-to-new"] = "few-shot"
        n_ctx_text: api.Count = 4
        n_ctx_vision: api.Count = 4
        depth_text: api.Count = 9
        depth_vision: api.Count = 9
        context_init: str = "a photo of a"
        text_weight: api.NonNegative = 25.0
        image_weight: api.NonNegative = 10.0
        logits_weight: api.NonNegative = 1.0
        average_mean: api.NonNegative | None = None
        average_std: api.Positive | None = None
        templates: Literal["imagenet", "dataset"] = "imagenet"
        lr: api.Positive = 2.5e-3
        batch_size: api.Count = 4
        epochs: api.Count | None = None

        tunes = (
            api.Range("lr", 2.5e-4, 2.5e-2, log=True),
            api.Range("text_weight", 1.0, 50.0, log=True),
            api.Range("image_weight", 1.0, 50.0, log=True),
        )

        def for_cell(self, info: api.CellInfo) -> PromptSRC.HParams:
            """Epochs, μ and σ by `setting`."""
            epochs, mean, std = _SETTINGS[self.setting]
            return replace(
                self,
                epochs=epochs if self.epochs is None else self.epochs,
                average_mean=mean if self.average_mean is None else self.average_mean,
                average_std=std if self.average_std is None else self.average_std,
            )

        def quick(self, info: api.CellInfo) -> PromptSRC.HParams:
            """At most 10 epochs, μ and σ scaled with them."""
            full, mean, std = self.epochs, self.average_mean, self.average_std
            assert full is not None
            assert mean is not None
            assert std is not None
            share = min(10, full) / max(1, full)
            return replace(
                self,
                epochs=min(10, full),
                average_mean=mean * share,
                average_std=std * share,
            )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD, and one weight an epoch."""
            mean, std = self.average_mean, self.average_std
            assert self.epochs is not None
            assert mean is not None
            assert std is not None
            exponents = [-0.5 * ((e - mean) / std) ** 2 for e in range(1, self.epochs + 1)]
            # Taken relative to the largest: far from μ all of them would round to 0.
            heights = [exp(value - max(exponents)) for value in exponents]
            return api.Recipe(
                lr=self.lr,
                epochs=self.epochs,
                batch_size=self.batch_size,
                epoch_weights=tuple(height / sum(heights) for height in heights),
            )

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        chosen = imagenet_templates() if hparams.templates == "imagenet" else task.templates
        known = [task.class_texts(template) for template in chosen]
        # The mean is one of features as the tower gives them.
        self.teacher = F.normalize(task.text_features(known).mean(0), dim=-1)  # (C,D)

    def features(self, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(N,3,H,H) -> normalised features of images (N,D) and classes (C,D)."""
        tap = self.tap()
        classes = self.task.encode_text(self.prompts, self.context, tap)
        parts = [self.task.backbone.encode_image(some, tap) for some in x.split(size)]
        return F.normalize(torch.cat(parts), dim=-1), F.normalize(classes, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,C)."""
        return self.task.cosine_logits(*self.features(x, len(x)))

    def loss(self, batch: api.Batch) -> Tensor:
        """Cross-entropy and the three regularisers, against the same augmented pixels."""
        images, classes = self.features(batch.x, len(batch.x))
        with torch.no_grad():
            plain = F.normalize(self.task.backbone.encode_image(batch.x), dim=-1)  # (B,D)
        logits = self.task.cosine_logits(images, classes)
        target = self.task.cosine_logits(plain, self.teacher)
        apart = F.kl_div(
            logits.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True
        )  # (B,C)
        hp = self.hparams
        total: Tensor = (
            batch.mean(F.cross_entropy(logits, batch.labels, reduction="none"))
            + hp.text_weight * F.l1_loss(classes, self.teacher)
            + hp.image_weight * batch.mean((images - plain).abs()).mean()
            + hp.logits_weight * batch.mean(apart).mean()
        )
        return total

    def predict(self, x: Tensor) -> Tensor:
        """(N,3,H,H) -> (N,C); the texts are encoded once."""
        return self.task.cosine_logits(*self.features(x, 64))
