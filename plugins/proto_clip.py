"""Proto-CLIP, the training-free form (Palanisamy et al., IROS 2024, arXiv 2307.03073)."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

import vipbench
from vipbench import api


class ProtoCLIP(api.Method):
    """Probabilities by image prototypes and by text prototypes, blended."""

    name = "proto-clip"
    kind = "TF"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """alpha: weight of the image prototypes; the texts get the rest."""

        alpha: float = 0.5

    def prepare(self, support):
        x, labels = normalize(support.plain, dim=-1), support.labels  # (N,D), (N,)
        self.images = torch.stack([x[labels == c].mean(0) for c in range(support.n_classes)])
        self.texts = self.task.class_features()  # (C,D), as self.images
        self.alpha = x.new_tensor(self.hparams.alpha)

    def forward(self, x):
        by_image = self.task.cosine_logits(x, self.images).log_softmax(-1)  # (B,C)
        by_text = self.task.cosine_logits(x, self.texts).log_softmax(-1)
        return torch.logaddexp(self.alpha.log() + by_image, (1 - self.alpha).log() + by_text)


@vipbench.hookimpl
def register_methods(register):
    register(ProtoCLIP)
