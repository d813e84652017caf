"""Methods on towers whose widths all differ, with other classes, shots and hyperparameters than the
recorded figures have, held to their formulas written down once more (see plain_clip)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backbones.clips import random_backbone, random_clip, tiny_config
from tests.methods.given import close, generator, train
from tests.methods.plain_clip import PlainClip, sgd
from vipbench import api
from vipbench.methods.biomedcoop import BiomedCoOp
from vipbench.methods.clip_adapter import CLIPAdapter
from vipbench.methods.cliplora import CLIPLoRA
from vipbench.methods.cocoop import CoCoOp
from vipbench.methods.coop import CoOp
from vipbench.methods.ivlp import IVLP
from vipbench.methods.kgcoop import KgCoOp
from vipbench.methods.maple import MaPLe
from vipbench.methods.prograd import ProGrad
from vipbench.methods.promptsrc import PromptSRC
from vipbench.methods.vip import ViP
from vipbench.methods.vpt import VPT

NAMES = ("melanoma", "basal cell carcinoma", "nevus", "dermatofibroma", "wart", "naevus of Ota")
# Joint, text and vision width are three numbers each time; layers and image sizes differ too.
TOWERS: dict[str, dict[str, Any]] = {
    "narrow-joint": {},
    "wide-text": {
        "embed_dim": 56,
        "text_cfg": {"width": 80, "heads": 5, "layers": 4},
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 3},
    },
}
CASES = [("narrow-joint", 2, 1), ("wide-text", 6, 3)]
cases = pytest.mark.parametrize(("towers", "classes", "shots"), CASES)


class Case:
    """The same towers twice, and images or features of `classes` classes, `shots` of each but one
    more of the first."""

    def __init__(self, towers: str, classes: int, shots: int, features: bool) -> None:
        changes = TOWERS[towers]
        self.plain = PlainClip(random_clip(tiny_config(**changes), seed=5))
        self.backbone = random_backbone(seed=5, **changes)
        self.names = NAMES[:classes]
        self.labels = torch.cat([torch.arange(classes).repeat_interleave(shots), torch.zeros(1)])
        self.labels = self.labels.long()[torch.randperm(len(self.labels), generator=generator("p"))]
        side = self.backbone.image_size
        shape = (self.backbone.dim,) if features else (3, side, side)
        self.x = torch.randn(len(self.labels), *shape, generator=generator("x"))
        self.test = torch.randn(7, *shape, generator=generator("t"))

    def make(self, method: type[api.Method], texts: Any = None, **hparams: Any) -> Any:
        info = api.CellInfo(
            3, len(self.x), len(self.names), "c", self.backbone.dim, self.backbone.width, "toy"
        )
        self.hparams = method.HParams(**hparams).for_cell(info)
        template = ("a scan of a {}.",)
        task = api.Task(
            self.backbone, self.names, template, texts, info, generator, descriptions=texts
        )
        self.recipe = self.hparams.recipe(info)
        return method(task, self.hparams)

    def starts(self, method: Any) -> dict[str, Tensor]:
        """Its parameters, apart from it."""
        named = method.named_parameters()
        return {name: p.detach().clone().requires_grad_() for name, p in named if p.numel()}

    def ends_alike(
        self, method: Any, ours: dict[str, Tensor], logits: Callable[[Tensor], Tensor]
    ) -> None:
        """`method` trained by the engine has `ours` and gives `logits` of the test images."""
        support = api.Support(self.x, self.labels, len(self.names), 3)
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        train(method, self.recipe, support)
        for name, value in ours.items():
            found = method.get_parameter(name).detach()
            assert not torch.equal(found, before[name]), f"{name} was not trained"
            close(found, value.detach())
        with torch.no_grad():
            close(method.predict(self.test), logits(self.test))


def texts_of(case: Case, prefix: str = "") -> list[str]:
    return [f"{prefix}{name}." for name in case.names]


@cases
def test_text_prompts(towers: str, classes: int, shots: int) -> None:
    settings: dict[str, Any] = {"lr": 0.05, "epochs": 4, "batch_size": 3}

    case = Case(towers, classes, shots, features=True)
    clip, scan = case.plain, F.normalize(case.plain.texts(texts_of(case, "a scan of a ")), dim=-1)
    method = case.make(CoOp, n_ctx=5, class_specific=True, **settings)
    ours = case.starts(method)

    def logits(x: Tensor) -> Tensor:
        return clip.logits(x, clip.texts(texts_of(case), ours["context"]))

    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), y)

    sgd([*ours.values()], entropy, case.x, case.labels, lr=0.05, epochs=4, batch=3)
    case.ends_alike(method, ours, logits)

    method = case.make(KgCoOp, weight=3.0, context_init="a picture of one", **settings)
    ours = case.starts(method)
    close(ours["context"], clip.words("a picture of one"), 1e-6)

    def held(x: Tensor, y: Tensor) -> Tensor:
        w = F.normalize(clip.texts(texts_of(case), ours["context"]), dim=-1)
        return F.cross_entropy(clip.logits(x, w), y) + 3.0 * (1 - (w * scan).sum(-1).mean())

    sgd([*ours.values()], held, case.x, case.labels, lr=0.05, epochs=4, batch=3)
    case.ends_alike(method, ours, logits)

    method = case.make(ProGrad, n_ctx=6, strength=0.7, temperature=2.0, **settings)
    ours = case.starts(method)
    assert not ours["context"][:2].any()
    close(ours["context"][2:], clip.words("a scan of a"), 1e-6)  # the dataset's template

    def two(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, teacher = logits(x), (clip.logits(x, scan) / 2).softmax(-1)
        return F.cross_entropy(z, y), -(teacher * (z / 2).log_softmax(-1)).sum(-1).mean() * 4

    def project(a: Tensor, b: Tensor) -> Tensor:
        unit = b / b.norm()
        dot = (a * unit).sum()
        return a - 0.7 * dot * unit if dot < 0 else a

    sgd([*ours.values()], two, case.x, case.labels, lr=0.05, epochs=4, batch=3, combine=project)
    case.ends_alike(method, ours, logits)


@cases
def test_biomedcoop(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=True)
    clip = case.plain
    kinds = ("a round", "a flat", "an old", "a pale blue", "a strange and very large", "one")
    texts = tuple(tuple(f"{kind} {name} on skin." for kind in kinds) for name in case.names)
    method = case.make(
        BiomedCoOp, texts, n_prompts=6, n_ctx=3, tau=0.8, consistency=40.0, distillation=2.0,
        lr=0.05, epochs=3, batch_size=2,
    )  # fmt: skip
    ours = case.starts(method)
    experts = torch.stack([F.normalize(clip.texts(row), dim=-1) for row in texts])  # (C,K,D)

    def classes_now() -> Tensor:
        # "a photo of a" gives three vectors; its last word stays in the text.
        return F.normalize(clip.texts(texts_of(case, "a "), ours["context"]), dim=-1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        w, f = classes_now(), F.normalize(x, dim=-1)
        score = (clip.scale * torch.einsum("ckd,bd->bck", experts, f)).amax(1).mean(0)  # (K,)
        keep = (score - score.mean()).abs() / score.std() <= 0.8
        assert 0 < int(keep.sum()) < 6
        kept = F.normalize(experts[:, keep].mean(1), dim=-1)
        z = clip.logits(x, w)
        apart = F.kl_div(
            z.log_softmax(-1), clip.logits(x, kept).log_softmax(-1), log_target=True,
            reduction="sum",
        ) / z.numel()  # fmt: skip
        away = F.mse_loss(w, F.normalize(experts.mean(1), dim=-1))
        return F.cross_entropy(z, y) + 40.0 * away + 2.0 * apart

    sgd([*ours.values()], loss, case.x, case.labels, lr=0.05, epochs=3, batch=2)
    case.ends_alike(method, ours, lambda x: clip.logits(x, classes_now()))


@cases
def test_a_context_for_each_image(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=True)
    clip = case.plain
    method = case.make(CoCoOp, lr=0.02, epochs=2, batch_size=2)
    ours = case.starts(method)

    def logits(x: Tensor) -> Tensor:
        f = F.normalize(x, dim=-1)
        inner = (f @ ours["linear1.weight"].T + ours["linear1.bias"]).relu()
        shift = inner @ ours["linear2.weight"].T + ours["linear2.bias"]  # (B,W)
        rows = [
            clip.logits(one[None], clip.texts(texts_of(case), ours["context"] + move))
            for one, move in zip(x, shift, strict=True)
        ]
        return torch.cat(rows)

    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), y)

    sgd([*ours.values()], entropy, case.x, case.labels, lr=0.02, epochs=2, batch=2)
    case.ends_alike(method, ours, logits)


@cases
def test_vip(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=True)
    clip, d = case.plain, case.backbone.dim
    every = ("a ragged edge", "even colour", "scales", "a pale halo around it", "hair")
    texts = tuple(every[: 2 + i % 3] for i in range(classes))  # ragged
    method = case.make(ViP, texts, n_ctx=3, lr=0.05, epochs=3, batch_size=2)
    ours = case.starts(method)
    assert ours["query"].shape == (classes, d)

    def logits(x: Tensor) -> Tensor:
        merged = []
        for c, row in enumerate(texts):
            t = clip.texts([f"{s}." for s in row], ours["context"])  # (K,D)
            query = ours["query"][c]
            weight = ((query @ ours["w_q"].T) @ (t @ ours["w_k"].T).T / math.sqrt(d)).softmax(-1)
            merged.append(query + weight @ t)
        return clip.logits(x, torch.stack(merged))

    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), y)

    sgd([*ours.values()], entropy, case.x, case.labels, lr=0.05, epochs=3, batch=2)
    case.ends_alike(method, ours, logits)


@cases
def test_vision_prompts(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=False)
    clip = case.plain
    method = case.make(VPT, n_ctx=3, depth=2, template="an x-ray of {}", lr=0.1, epochs=3)
    ours = case.starts(method)
    known = clip.texts([f"an x-ray of {name}" for name in case.names])

    def logits(x: Tensor) -> Tensor:
        return clip.logits(clip.images(x, ours["vision"]), known)

    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), y)

    sgd([*ours.values()], entropy, case.x, case.labels, lr=0.1, epochs=3, batch=4)
    case.ends_alike(method, ours, logits)

    method = case.make(MaPLe, n_ctx=3, depth=2, lr=0.1, epochs=3, batch_size=2)
    ours = case.starts(method)

    def coupled(x: Tensor) -> Tensor:
        deep = ours["deep"]
        rows = [ours["context"] @ ours["project.weight"].T + ours["project.bias"]]
        for i, row in enumerate(deep):
            name = f"project_deep.{i}"
            rows.append(row @ ours[f"{name}.weight"].T + ours[f"{name}.bias"])
        # Three of "a photo of a"; the last word stays.
        w = clip.texts(texts_of(case, "a "), ours["context"], deep)
        return clip.logits(clip.images(x, torch.stack(rows)), w)

    def coupled_entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(coupled(x), y)

    sgd([*ours.values()], coupled_entropy, case.x, case.labels, lr=0.1, epochs=3, batch=2)
    case.ends_alike(method, ours, coupled)


@cases
def test_prompts_of_both_towers(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=False)
    clip = case.plain
    sizes: dict[str, Any] = {
        "n_ctx_text": 2, "n_ctx_vision": 5, "depth_text": 3, "depth_vision": 2, "lr": 0.1,
        "epochs": 4, "batch_size": 2,
    }  # fmt: skip

    def features(x: Tensor) -> tuple[Tensor, Tensor]:
        w = clip.texts(texts_of(case, "of a "), ours["context"], ours["deep"])
        return F.normalize(clip.images(x, ours["vision"]), dim=-1), F.normalize(w, dim=-1)

    def logits(x: Tensor) -> Tensor:
        return clip.logits(*features(x))

    method = case.make(IVLP, **sizes)
    ours = case.starts(method)

    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), y)

    sgd([*ours.values()], entropy, case.x, case.labels, lr=0.1, epochs=4, batch=2)
    case.ends_alike(method, ours, logits)

    weights: dict[str, Any] = {"text_weight": 7.0, "image_weight": 3.0, "logits_weight": 0.5}
    method = case.make(
        PromptSRC, templates="dataset", average_mean=2.0, average_std=1.5, **weights, **sizes
    )
    ours = case.starts(method)
    teacher = F.normalize(clip.texts(texts_of(case, "a scan of a ")), dim=-1)
    sums = {name: torch.zeros_like(value) for name, value in ours.items()}
    bell = [math.exp(-0.5 * ((e - 2.0) / 1.5) ** 2) for e in range(1, 5)]

    def regularised(x: Tensor, y: Tensor) -> Tensor:
        f, w = features(x)
        plain = F.normalize(clip.images(x), dim=-1)
        z, target = clip.logits(f, w), clip.logits(plain, teacher)
        apart = F.kl_div(
            z.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="sum"
        )
        return (
            F.cross_entropy(z, y)
            + 7.0 * (w - teacher).abs().mean()
            + 3.0 * (f - plain).abs().mean()
            + 0.5 * apart / z.numel()
        )

    def average(epoch: int) -> None:
        for name, value in ours.items():
            sums[name] += bell[epoch] / sum(bell) * value.detach()

    sgd(
        [*ours.values()], regularised, case.x, case.labels, lr=0.1, epochs=4, batch=2,
        after_epoch=average,
    )  # fmt: skip
    for name, value in ours.items():
        value.data.copy_(sums[name])
    case.ends_alike(method, ours, logits)


@cases
def test_low_rank_updates(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=False)
    clip, rank, alpha, steps, lr = case.plain, 3, 2.0, 6, 0.02
    method = case.make(
        CLIPLoRA, rank=rank, alpha=alpha, params="qv", dropout=0.0, lr=lr, batch_size=3,
        iterations_per_shot=2, weight_decay=0.1,
    )  # fmt: skip
    assert case.recipe.iterations == steps
    ours = case.starts(method)
    names = {"text": "transformer", "vision": "visual.transformer"}

    def weights() -> dict[str, Tensor]:
        found = {}
        for tower, place in names.items():
            down, up = ours[f"{tower}_down"], ours[f"{tower}_up"]  # (d,P,r,·), (d,P,·,r)
            for i in range(len(down)):
                name = f"{place}.resblocks.{i}.attn.in_proj_weight"
                q, k, v = clip.model.get_parameter(name).chunk(3)
                change = alpha / rank**0.5
                q = q + change * up[i, 0] @ down[i, 0]
                v = v + change * up[i, 1] @ down[i, 1]
                found[name] = torch.cat([q, k, v])
        return found

    def logits(x: Tensor) -> Tensor:
        return clip.with_weights(
            weights(),
            lambda: clip.logits(clip.images(x), clip.texts(texts_of(case, "a scan of a "))),
        )

    adamw = torch.optim.AdamW(list(ours.values()), lr=lr, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps, eta_min=1e-6)
    done, n = 0, len(case.x)
    while done < steps:
        for start in range(0, n, 3):
            if done < steps:
                adamw.zero_grad()
                x, y = case.x[start : start + 3], case.labels[start : start + 3]
                F.cross_entropy(logits(x), y).backward()
                adamw.step()
                rates.step()
                done += 1
    case.ends_alike(method, ours, logits)


@cases
def test_clip_adapter(towers: str, classes: int, shots: int) -> None:
    case = Case(towers, classes, shots, features=True)
    clip = case.plain
    method = case.make(CLIPAdapter, ratio=0.6, reduction=3, lr=0.05, epochs=4, batch_size=2)
    ours = case.starts(method)
    assert ours["down.weight"].shape == (case.backbone.dim // 3, case.backbone.dim)
    known = clip.texts(texts_of(case, "a scan of a "))

    def logits(x: Tensor) -> Tensor:
        h = ((x @ ours["down.weight"].T).relu() @ ours["up.weight"].T).relu()
        return clip.logits(0.6 * h + 0.4 * x, known)

    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), y)

    sgd([*ours.values()], entropy, case.x, case.labels, lr=0.05, epochs=4, batch=2)
    case.ends_alike(method, ours, logits)
