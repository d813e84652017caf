"""The problem that a method is given: classes, texts about them, frozen towers, initial values.

Shapes: B images of a batch, C classes, K texts of a class, D embedding width, W text-transformer
width, M learned context tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.api.backbone import (
    Backbone,
    ImageBackbone,
    Prompts,
    Tap,
    Text,
    TextError,
    Texts,
    UnsupportedError,
)
from vipbench.api.recipe import CellInfo


@dataclass(frozen=True)
class Task:
    """The problem of one cell. Not an nn.Module, so that frozen towers never enter `parameters()`.

    class_names: C names. templates: texts holding one `{}`. symptoms: per class its symptoms, or
    None. generator: purpose -> a torch.Generator seeded by the cell and that purpose alone.
    descriptions: per class texts that hold its name, or None. dims: D of the backbone and of each
    of `HParams.backbones()`; a method's x has the sum of them.
    """

    image_backbone: ImageBackbone
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    symptoms: tuple[tuple[str, ...], ...] | None
    info: CellInfo
    generator: Callable[[str], torch.Generator]
    _frozen: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)
    descriptions: tuple[tuple[str, ...], ...] | None = None
    _encode: Callable[[Prompts], Tensor] | None = field(default=None, repr=False, compare=False)
    dims: tuple[int, ...] = ()
    # Called with all texts to be encoded, and the number of learned vectors that each takes in.
    _seen: Callable[[Texts, int], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.dims:
            object.__setattr__(self, "dims", (self.image_backbone.dim,))

    @property
    def backbone(self) -> Backbone:
        """The towers; raises TypeError if the backbone has no text tower."""
        if not isinstance(self.image_backbone, Backbone):
            raise TypeError(f"backbone '{self.image_backbone.name}' has no text side")
        return self.image_backbone

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names as used in texts: underscores become spaces."""
        return tuple(name.replace("_", " ") for name in self.class_names)

    @property
    def device(self) -> torch.device:
        """The towers' device."""
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
        # Frozen or not, it is no model of another source.
        vars(layer)["drawn_by_task"] = True
        bound = fan_in**-0.5
        with torch.no_grad():
            layer.weight.copy_(self.uniform(f"{name}.weight", fan_out, fan_in, bound=bound))
            if bias:
                layer.bias.copy_(self.uniform(f"{name}.bias", fan_out, bound=bound))
        return layer

    # Texts.

    def embed(self, texts: Texts, context: int = 0) -> Prompts:
        """See Backbone.embed. context: the number of learned vectors to insert into each text;
        raises TextError if a text would become too long, so that the cell is reported as impossible
        before anything runs."""
        if self._seen is not None:
            self._seen(texts, context)
        prompts = self.backbone.embed(texts)
        longest = int(prompts.lengths.max())
        if context and longest + context > self.backbone.context_length:
            flat = int(prompts.lengths.flatten().argmax())
            place = [int(i) for i in torch.unravel_index(torch.tensor(flat), prompts.shape)]
            raise TextError(
                f"the text '{_text_at(texts, place)}' has {longest} tokens with start and end, and "
                f"{context} context vectors; the tower of '{self.backbone.name}' takes at most "
                f"{self.backbone.context_length}: shorten the text, or use fewer vectors"
            )
        return prompts

    def encode_text(
        self, prompts: Prompts, context: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """See Backbone.encode_text."""
        return self.backbone.encode_text(prompts, context, tap)

    def text_features(self, texts: Texts) -> Tensor:
        """Frozen features (*N, D) of texts without context, not normalised; encoded once."""
        if self._seen is not None:
            self._seen(texts, 0)
        key = _as_key(texts)
        if key not in self._frozen:
            encode = self._encode or self.backbone.encode_text
            with torch.no_grad():
                self._frozen[key] = encode(self.backbone.embed(texts)).detach()
        return self._frozen[key]

    def class_texts(self, template: str | None = None) -> list[Text]:
        """One text per class: the class name in `template`, by default the dataset's first."""
        chosen = template or self.templates[0]
        return [chosen.replace("{}", name) for name in self.names]

    def class_features(self, templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights (C,D): mean over templates of normalised features, renormalised."""
        chosen = templates or self.templates
        per_template = [
            F.normalize(self.text_features(self.class_texts(t)), dim=-1) for t in chosen
        ]
        return F.normalize(torch.stack(per_template).mean(0), dim=-1)

    # Lists, since a tuple of texts would be one text of several pieces.

    def symptom_texts(self) -> list[list[str]]:
        """Per class its symptoms; raises ValueError where the cell has none."""
        if self.symptoms is None:
            raise ValueError(
                f"dataset '{self.info.dataset}' has no symptoms; give --symptoms "
                f"{self.info.dataset}=FILE"
            )
        return [list(row) for row in self.symptoms]

    def description_texts(self, count: int) -> list[list[str]]:
        """Per class its first `count` descriptions. Raises UnsupportedError, and so makes the cell
        impossible, if a class has fewer, or none that contains its name: such texts are symptoms
        and do not replace descriptions."""
        given = self.descriptions or ((),) * self.n_classes
        for name, texts in zip(self.names, given, strict=True):
            if len(texts) < count:
                raise UnsupportedError(
                    f"{count} descriptions of each class are needed, and dataset "
                    f"'{self.info.dataset}' has {len(texts)} of class '{name}'"
                )
            if not any(name.casefold() in text.casefold() for text in texts):
                raise UnsupportedError(
                    f"no description of class '{name}' in dataset "
                    f"'{self.info.dataset}' contains the class name; descriptions must"
                )
        return [list(texts[:count]) for texts in given]

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


def _text_at(texts: Any, place: Sequence[int]) -> str:
    for i in place:
        texts = texts[i]
    return texts if isinstance(texts, str) else " … ".join(piece for piece in texts if piece)


def _as_key(texts: Texts) -> Any:
    return texts if isinstance(texts, str) else (type(texts) is tuple, *map(_as_key, texts))
