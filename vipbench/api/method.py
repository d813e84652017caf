"""What a method plugin implements, and what it is given.

Shapes: B images of a batch, C classes, K texts of a class, N support images, D embedding width,
W text-transformer width, M learned context tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.api.backbone import Backbone, ImageBackbone, Prompts, Tap, Text, Texts
from vipbench.api.recipe import CellInfo, HParams


@dataclass(frozen=True)
class Task:
    """The problem of one cell. No nn.Module, so that frozen towers never enter `parameters()`.

    class_names: C names. templates: texts holding one `{}`. symptoms: per class its symptoms,
    or None. generator: purpose -> a torch.Generator seeded by the cell and that purpose alone.
    """

    image_backbone: ImageBackbone
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    symptoms: tuple[tuple[str, ...], ...] | None
    info: CellInfo
    generator: Callable[[str], torch.Generator]
    _frozen: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def backbone(self) -> Backbone:
        """The towers; raises TypeError where the backbone has no text side."""
        if not isinstance(self.image_backbone, Backbone):
            raise TypeError(f"backbone '{self.image_backbone.name}' has no text side")
        return self.image_backbone

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names as texts hold them: underscores are spaces."""
        return tuple(name.replace("_", " ") for name in self.class_names)

    @property
    def device(self) -> torch.device:
        """Where the towers live."""
        return self.image_backbone.device

    # Initial values: drawn on the CPU from the cell's own generators, so that a stacked, looped
    # or resumed run on any device starts alike.

    def normal(self, name: str, *shape: int, std: float = 0.02) -> Tensor:
        """N(0, std²) values; `name` is the purpose that keys the draw."""
        return (torch.randn(*shape, generator=self.generator(f"init/{name}")) * std).to(self.device)

    def xavier_normal(self, name: str, fan_out: int, fan_in: int) -> Tensor:
        """(fan_out, fan_in), Glorot and Bengio 2010, normal form."""
        return self.normal(name, fan_out, fan_in, std=(2.0 / (fan_in + fan_out)) ** 0.5)

    def uniform(self, name: str, *shape: int, bound: float) -> Tensor:
        """Values drawn evenly from [-bound, bound)."""
        unit = torch.rand(*shape, generator=self.generator(f"init/{name}"))
        return ((unit * 2 - 1) * bound).to(self.device)

    def linear(self, name: str, fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
        """An nn.Linear with PyTorch's default initialisation, drawn from the cell's seed."""
        layer = nn.Linear(fan_in, fan_out, bias=bias, device=self.device)
        bound = fan_in**-0.5
        with torch.no_grad():
            layer.weight.copy_(self.uniform(f"{name}.weight", fan_out, fan_in, bound=bound))
            if bias:
                layer.bias.copy_(self.uniform(f"{name}.bias", fan_out, bound=bound))
        return layer

    # Texts.

    def embed(self, texts: Texts) -> Prompts:
        """See Backbone.embed."""
        return self.backbone.embed(texts)

    def encode_text(
        self, prompts: Prompts, context: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """See Backbone.encode_text."""
        return self.backbone.encode_text(prompts, context, tap)

    def text_features(self, texts: Texts) -> Tensor:
        """Frozen features (*N, D) of texts without context, not normalised; encoded once."""
        key = _as_key(texts)
        if key not in self._frozen:
            with torch.no_grad():
                self._frozen[key] = self.backbone.encode_text(self.backbone.embed(texts)).detach()
        return self._frozen[key]

    def class_texts(self, template: str | None = None) -> list[Text]:
        """One text a class: `template` (by default the dataset's first) with the name in it."""
        chosen = template or self.templates[0]
        return [chosen.replace("{}", name) for name in self.names]

    def class_features(self, templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights (C,D): mean over templates of normalised features, renormalised."""
        chosen = templates or self.templates
        per_template = [
            F.normalize(self.text_features(self.class_texts(t)), dim=-1) for t in chosen
        ]
        return F.normalize(torch.stack(per_template).mean(0), dim=-1)

    def symptom_texts(self) -> tuple[tuple[str, ...], ...]:
        """Per class its symptoms; raises ValueError where the cell has none."""
        if self.symptoms is None:
            raise ValueError(
                f"dataset '{self.info.dataset}' has no symptoms; give --symptoms "
                f"{self.info.dataset}=FILE"
            )
        return self.symptoms

    @property
    def logit_scale(self) -> float:
        """The checkpoint's temperature, after exp."""
        return self.backbone.logit_scale

    def cosine_logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """logit_scale · cosine: x (B,D) with classes (C,D) or, per image, (B,C,D) -> (B,C)."""
        x, classes = F.normalize(x, dim=-1), F.normalize(classes, dim=-1)
        if classes.dim() == 2:
            return self.logit_scale * x @ classes.T
        return self.logit_scale * (classes @ x.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Labelled:
    """x (N,D) features or (N,3,H,H) images; labels (N,)."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Support:
    """The support set of one cell.

    plain: (N,D) features of the evaluation view, or images (N,3,H,H) where the method's
    `inputs` is "images". labels: (N,). groups: patient or lesion ids. val: validation images
    under the run's validation policy, None where it allows none. n_views: how many different
    training views there are (0: only `plain`).
    """

    plain: Tensor
    labels: Tensor
    n_classes: int
    shots: int | None
    get_view: Callable[[int], Tensor] | None = None
    n_views: int = 0
    groups: tuple[str, ...] | None = None
    val: Labelled | None = None

    def view(self, index: int) -> Tensor:
        """Training view `index` (modulo n_views) of all N images, like `plain`."""
        if self.get_view is None or self.n_views == 0:
            return self.plain
        return self.get_view(index % self.n_views)


@dataclass(frozen=True)
class Batch:
    """x (B,D) features or (B,3,H,H) images; labels (B,); weight (B,), 0 for padding."""

    x: Tensor
    labels: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values (B, *) over the batch's real images -> (*)."""
        weight = self.weight.reshape(-1, *[1] * (values.dim() - 1))
        return (values * weight).sum(0) / self.weight.sum()


class Method(nn.Module, ABC):
    """A few-shot method, written for ONE cell, as its paper states it.

    The engine trains, stacks over cells, scores and records it. A method holds no optimizer,
    device, data loader, tokenizer or file handling and draws no random numbers. `self.training`
    is True in `loss` and `fit`, False in `finish` and `predict`.

    name: the command-line word. revision: raise it when the method's numbers change.
    kind: TF training-free, TP text prompts, AD adapter on features, MM vision or multimodal
    prompts, FT fine-tuning. needs: of "symptoms", "val", "test_images" (transductive), "text"
    (a text tower; the default), "vit" (a vision transformer). uses_support: False for zero-shot
    methods, which run once, at 0 shots. A plain tensor attribute becomes a buffer by itself.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["TF", "TP", "AD", "MM", "FT"]]
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    revision: ClassVar[int] = 1
    inputs: ClassVar[Literal["features", "images"]] = "features"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    uses_support: ClassVar[bool] = True
    stackable: ClassVar[bool] = True
    trains_towers: ClassVar[bool] = False
    HParams: ClassVar[type[HParams]] = HParams

    def __init__(self, task: Task, hparams: Any) -> None:
        super().__init__()
        self.task = task
        self.hparams = hparams

    def __setattr__(self, name: str, value: Any) -> None:
        # A plain tensor attribute would serve every stacked cell the first one's values.
        plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        if plain and name not in self._buffers and name not in self._parameters:
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def noise(self) -> Mapping[str, tuple[int, ...]]:
        """Buffer name -> shape of standard normal noise that the engine refills every step;
        for scoring it is drawn once per cell."""
        return {}

    def prepare(self, support: Support) -> None:
        """Once, before training: set buffers, initial values, the α of a formula. Parameters whose
        shape depends on the support set are made here."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x (B,D), or images (B,3,H,H) -> logits (B,C). Each image's logits depend on it alone."""

    def loss(self, batch: Batch) -> Tensor | tuple[Tensor, ...]:
        """A scalar, or a tuple of scalars for `combine`. Default: mean cross-entropy."""
        return batch.mean(F.cross_entropy(self(batch.x), batch.labels, reduction="none"))

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        """One parameter's gradients, one per loss -> the gradient to use. Default: their sum."""
        total = grads[0]
        for grad in grads[1:]:
            total = total + grad
        return total

    def fit(self, support: Support) -> None:
        """Overridden: the method's own loop, instead of the engine's; never stacked. This
        default is never called: the engine asks `has_own_fit` first."""

    def finish(self, support: Support) -> None:
        """After training, before scoring: a search on `support.val`, closed forms."""

    def predict(self, x: Tensor) -> Tensor:
        """x (N,·) -> logits (N,C). Default: forward in chunks. Methods that need
        "test_images" see the whole test set here."""
        return torch.cat([self(chunk) for chunk in x.split(256)])


def has_own_fit(method: type[Method]) -> bool:
    """Whether `method` brings its own training loop."""
    return method.fit is not Method.fit


def _as_key(texts: Texts) -> Any:
    return texts if isinstance(texts, str) else (type(texts) is tuple, *map(_as_key, texts))
