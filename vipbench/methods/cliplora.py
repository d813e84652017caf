"""CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024, arXiv 2405.18541).

Equation 2, W x + γ B A x, in the attention of every block of both towers; A as PyTorch starts a
linear layer, B zero, γ = α/√r as in the official program. Published settings: rank 2 on queries,
keys and values, α 1, dropout 0.25 before A, AdamW 2e-4 with decay 1e-2, cosine to 1e-6 over
500·k iterations of batch 32, no validation. The paper has no run on full data: there, the
iterations of 16 shots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.deep import PromptedTowers

Position = Literal["all", "top1", "top2", "top3", "bottom", "mid", "up", "half-up", "half-bottom"]


class CLIPLoRA(PromptedTowers):
    """Low-rank updates of the attention's projections in both towers."""

    name = "cliplora"
    kind = "FT"
    paper = "Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models"
    year = 2024
    revision = 2

    text_down: nn.Parameter
    text_up: nn.Parameter
    vision_down: nn.Parameter
    vision_up: nn.Parameter
    key: Tensor

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """params: letters of the projections, of q, k, v, o. encoder: which towers. position: in
        which blocks. max_iterations: cuts 500·k (unpublished, for quick runs). compat:
        `official` scores with a temperature of 100 whatever the checkpoint's is. template:
        empty is the dataset's first; with encoder `vision`, where texts stay as they are, the
        mean over all of the dataset's, as in the official program."""

        rank: api.Count = 2
        alpha: api.NonNegative = 1.0
        params: str = "qkv"
        encoder: Literal["both", "text", "vision"] = "both"
        position: Position = "all"
        dropout: api.ProportionBelowOne = 0.25
        lr: api.Positive = 2e-4
        weight_decay: api.NonNegative = 1e-2
        batch_size: api.Count = 32
        iterations_per_shot: api.Count = 500
        max_iterations: api.Count | None = None
        template: str = ""
        compat: Literal["paper", "official"] = "paper"

        tunes = (
            api.Range("lr", 2e-5, 2e-3, log=True),
            api.Choice("rank", (2, 4, 8)),
        )

        def __post_init__(self) -> None:
            if not self.params or not set(self.params) <= set("qkvo"):
                raise ValueError(f"params is '{self.params}'; expected letters of q, k, v and o")

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """AdamW over 500·k iterations."""
            iterations = self.iterations_per_shot * (info.shots or 16)
            return api.Recipe(
                optimizer="adamw",
                lr=self.lr,
                weight_decay=self.weight_decay,
                epochs=None,
                iterations=min(iterations, self.max_iterations or iterations),
                schedule="cosine-step",
                min_lr=1e-6,
                batch_size=self.batch_size,
                drop_last=False,
            )

        def quick(self, info: api.CellInfo) -> CLIPLoRA.HParams:
            """At most 100 iterations."""
            return replace(self, max_iterations=min(100, self.max_iterations or 100))

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        tower, r = task.backbone, hparams.rank
        self.prompts = task.embed(task.class_texts(hparams.template or None))  # (C,)
        self.blocks: dict[str, list[int]] = {}
        for name, layers, width in (
            ("text", tower.text_layers, tower.width),
            ("vision", tower.vision_layers, tower.vision_width),
        ):
            assert width is not None
            chosen = _blocks(hparams.position, layers) if hparams.encoder in ("both", name) else []
            self.blocks[name] = chosen
            shape = (len(chosen), len(hparams.params), r, width)
            down = task.uniform(f"{name}.down", *shape, bound=width**-0.5)
            # A (d,P,r,·) and B (d,P,·,r).
            self.register_parameter(f"{name}_down", nn.Parameter(down))
            self.register_parameter(f"{name}_up", nn.Parameter(down.mT.contiguous() * 0))

    def noise(self) -> dict[str, tuple[int, ...]]:
        """A key from which each step's dropout masks are computed."""
        return {"key": (1,)} if self.hparams.dropout else {}

    def score(self, x: Tensor, size: int) -> Tensor:
        """(N,3,H,H) -> (N,C), `size` images at a time."""
        tap = _LowRank(self)
        backbone = self.task.backbone
        if self.hparams.encoder == "vision":
            given = self.hparams.template
            classes = self.task.class_features([given] if given else None)
        else:
            classes = self.task.encode_text(self.prompts, tap=tap)  # (C,D)
        if self.hparams.encoder == "text":
            parts = [backbone.encode_image(some) for some in x.split(size)]
        else:
            parts = [backbone.encode_image(some, tap) for some in x.split(size)]
        logits = self.task.cosine_logits(torch.cat(parts), classes)
        if self.hparams.compat == "official":
            logits = logits * (100.0 / self.task.logit_scale)
        return logits


class _LowRank(api.NoTap):
    """y + α/√r · B A dropout(x)."""

    def __init__(self, method: CLIPLoRA) -> None:
        hp = method.hparams
        self.factors = {
            "text": (method.text_down, method.text_up),
            "vision": (method.vision_down, method.vision_up),
        }
        self.blocks, self.params = method.blocks, hp.params
        self.scale: float = hp.alpha / hp.rank**0.5
        self.dropout = hp.dropout if method.training else 0.0
        self.key = method.key if self.dropout else None
        self.bits: dict[tuple[str, int, bool], Tensor] = {}

    def linear(self, tower: api.Tower, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
        """See `Tap.linear`."""
        if name not in self.params or layer not in self.blocks[tower]:
            return y
        at = self.blocks[tower].index(layer), self.params.index(name)
        down, up = (factor[at].to(x.dtype) for factor in self.factors[tower])
        if self.key is not None:
            # q, k and v are projections of the same x: one hash has bits for all three.
            place = tower, layer, name == "o"
            if place not in self.bits:
                salt = (tower == "vision") * 4096 + layer * 2 + (name == "o")
                self.bits[place] = random_bits(x, self.key, salt)
            x = dropout(x, self.dropout, self.bits[place], "qkvo".index(name) % 3)
        update = x @ down.T @ up.T
        return y + self.scale * update


def random_bits(x: Tensor, key: Tensor, salt: int) -> Tensor:
    """32 bits for every value of x (*), int64.

    A hash of the place in x, `key` (1,) and `salt`: the same for a stacked, looped or resumed
    cell on any device, where noise of x's size in every layer would fill the memory.
    """
    place = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    bits = (place + salt * 0x9E3779B1 + (key * 2**40).long()) & 0xFFFFFFFF
    for multiplier in (0x7FEB352D, 0x846CA68B):
        bits = ((bits ^ (bits >> 16)) * multiplier) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def dropout(x: Tensor, rate: float, bits: Tensor, field: int) -> Tensor:
    """x (*) with a share `rate`, to the next 1/1024, of its values zero, the others scaled to
    keep the mean. field: which ten of the `bits` say so, 0 to 2."""
    share = round(rate * 1024)
    keep = ((bits >> (10 * field)) & 1023) >= share
    dropped: Tensor = x * keep / (1 - share / 1024)
    return dropped


def _blocks(position: str, layers: int) -> list[int]:
    """Numbers of the chosen blocks, of `layers`; thirds and halves are those of the depth."""
    every = list(range(layers))
    if position.startswith("top"):
        return every[-int(position[3:]) :]
    third, half = layers // 3, layers // 2
    return {
        "all": every,
        "bottom": every[:third],
        "mid": every[third : 2 * third],
        "up": every[2 * third :],
        "half-bottom": every[:half],
        "half-up": every[half:],
    }[position]
