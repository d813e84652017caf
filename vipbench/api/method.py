"""What a method plugin implements, and what it is given.

Shapes: B images of a batch, C classes, K texts of a class, N support images, D embedding width,
W text-transformer width, M learned context tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.api.recipe import HParams, Published
from vipbench.api.task import Task


@dataclass(frozen=True)
class Labelled:
    """x (N,D) features or (N,3,H,H) images; labels (N,)."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Support:
    """The support set of one cell.

    plain: (N,D) features of the evaluation view, or images (N,3,H,H) where the method's `inputs` is
    "images". labels: (N,). groups: patient or lesion ids. val: validation images under the run's
    validation policy, None where it allows none. n_views: how many different training views there
    are (0: only `plain`). best_val: whether the run keeps the state that is best on `val`; only a
    method's own `fit` needs it.
    """

    plain: Tensor
    labels: Tensor
    n_classes: int
    shots: int | None
    get_view: Callable[[int], Tensor] | None = None
    n_views: int = 0
    groups: tuple[str, ...] | None = None
    val: Labelled | None = None
    best_val: bool = False

    def view(self, index: int) -> Tensor:
        """Training view `index` (modulo n_views) of all N images, like `plain`."""
        if self.get_view is None or self.n_views == 0:
            return self.plain
        return self.get_view(index % self.n_views)


@dataclass(frozen=True)
class Batch:
    """x (B,D) features or (B,3,H,H) images; labels (B,); weight (B,), 0 for padding, which occurs
    only if `pads_batches` is true for the method."""

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
    device, data loader, tokenizer or file handling and draws no random numbers. `self.training` is
    True in `loss` and `fit`, False in `finish` and `predict`.

    name: the command-line word. revision: raise it when the method's numbers change. kind: TF
    training-free, TP text prompts, AD adapter on features, MM vision or multimodal prompts, FT
    fine-tuning. bibtex: the paper's entry. cost: of a cell, on one GPU when the paper appeared.
    needs: of "text" (a text tower; the default), "symptoms", "descriptions" (see
    Task.description_texts), "val", "test_images" (transductive), "test_views" (several views of
    each test image, see HParams.test_views), "vit" (a vision transformer). uses_support: False for
    zero-shot methods, which run at 0 shots: once, or once per seed if they need "test_images" or
    "test_views". transfers: whether the learned parameters apply to classes that it was not trained
    on (base-to-new, cross-dataset); with None the engine determines it, see docs/protocols.md.
    pads: whether the method's own `loss` respects `batch.weight`, see `pads_batches`. Plain tensor
    attributes become buffers automatically.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["TF", "TP", "AD", "MM", "FT"]]
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    bibtex: ClassVar[str] = ""
    cost: ClassVar[Literal["seconds", "minutes", "hours"]] = "minutes"
    revision: ClassVar[int] = 1
    inputs: ClassVar[Literal["features", "images"]] = "features"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    uses_support: ClassVar[bool] = True
    transfers: ClassVar[bool | None] = None
    pads: ClassVar[bool] = False
    stackable: ClassVar[bool] = True
    trains_towers: ClassVar[bool] = False
    published: ClassVar[Published] = Published()
    HParams: ClassVar[type[HParams]] = HParams
    last_batch: Batch

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
        """A scalar, or a tuple of scalars for `combine`. Default: mean cross-entropy.

        An overridden loss gets batches without padding, and cells are trained together only if
        their batches have equal length. `pads = True` declares that it computes every mean over the
        batch by `batch.mean`; it then gets padded batches, and more cells are trained together.
        """
        return batch.mean(F.cross_entropy(self(batch.x), batch.labels, reduction="none"))

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        """One parameter's gradients, one per loss -> the gradient to use. Default: their sum."""
        total = grads[0]
        for grad in grads[1:]:
            total = total + grad
        return total

    def after_step(self) -> Mapping[str, Tensor]:
        """Buffer name -> its new value, of the same shape and type: after each optimizer step,
        without gradients. Default: none.

        A mean teacher, a bank, running statistics: all state that training changes besides the
        parameters. `self.last_batch` is the step's Batch, here alone. Names are those of
        `named_buffers`, or of frozen parameters, the same after every step. Other writes to
        attributes or buffers in a step are refused: cells that train together share one object.
        """
        return {}

    def fit(self, support: Support) -> None:
        """If overridden: the method's own training loop, instead of the engine's; never stacked.
        This default is never called: the engine asks `has_own_fit` first."""

    def finish(self, support: Support) -> None:
        """After training, before scoring: a search on `support.val`, closed forms."""

    def symptom_view(self) -> tuple[Tensor, Tensor] | None:
        """For explanations: the symptoms' text features (C,K,D), and how much each counts in its
        class (C,K), 0 for padding. None where the method merges no symptoms."""
        return None

    def predict(self, x: Tensor) -> Tensor:
        """x (N,·) -> logits (N,C). Default: forward in chunks.

        Called without gradients; a method that adapts to test images enables them by `with
        torch.enable_grad():`. Methods that need "test_images" see the whole test set here, in an
        order that depends on the images and the cell's seed alone. Those that need "test_views" get
        x (N,1+V,D), or images (N,1+V,3,H,H), view 0 being the evaluation view.
        """
        return torch.cat([self(chunk) for chunk in x.split(256)])


def pads_batches(method: type[Method]) -> bool:
    """Whether the engine may pad this method's batches with images of weight 0: if it keeps the
    default loss, or if the class that overrides `loss`, or one derived from it, sets `pads`."""
    for owner in method.__mro__:
        if owner is Method:
            return not method.trains_towers
        if "pads" in vars(owner):
            return bool(owner.__dict__["pads"])
        if "loss" in vars(owner):
            return False
    return False


def has_own_fit(method: type[Method]) -> bool:
    """Whether `method` has its own training loop."""
    return method.fit is not Method.fit
