"""The frozen towers: what a backbone plugin implements.

Shapes: B images of a batch, C classes, K texts of a class, D embedding width, W text-transformer
width, M learned context tokens, S tokens of a text, T tokens inside a tower; `*L`, `*N` any
leading dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, Union, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

Tower: TypeAlias = Literal["text", "vision"]
Text: TypeAlias = Union[str, tuple[str, ...]]
Texts: TypeAlias = Union[Text, Sequence["Texts"]]


@dataclass(frozen=True)
class Prompts:
    """Tokenised texts with marked places for learned context vectors.

    tokens: (*N, S) int64: start token, the pieces' tokens, end token, padding. A gap takes no
        place here; it is filled when the text is encoded.
    lengths: (*N,) int64: real tokens of each text, start and end included.
    gaps: (*N, G) int64 or None: context vectors of gap g go before token `gaps[..., g]`
        (1 = right after the start token). Of M vectors each gap takes M//G, in order, and the
        last gap takes the rest. None: these texts take no context.
    mask: (*N,) bool or None: False where a ragged class was padded; the features there are
        finite but meaningless, and a method must not use them.
    """

    tokens: Tensor
    lengths: Tensor
    gaps: Tensor | None = None
    mask: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """*N."""
        return self.lengths.shape

    def __getitem__(self, index: slice) -> Prompts:
        """A slice along the first dimension of *N."""
        return Prompts(
            self.tokens[index],
            self.lengths[index],
            None if self.gaps is None else self.gaps[index],
            None if self.mask is None else self.mask[index],
        )

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on `device`."""
        move = [t if t is None else t.to(device) for t in (self.gaps, self.mask)]
        return Prompts(self.tokens.to(device), self.lengths.to(device), *move)


@runtime_checkable
class Tap(Protocol):
    """A hook inside both towers; functional, so that frozen weights are never touched."""

    def tokens(self, tower: Tower, layer: int, x: Tensor) -> Tensor:
        """x (*, T, width) before block `layer`: append or replace rows, return the new x.

        Layer 0 of the vision tower is asked after the positional embedding and before the
        tower's first normalisation (ln_pre), where published vision prompts enter. In the text
        tower the learned context stands in rows 1..M. Rows appended to a text must stand
        behind the end token's row only if the tower is bidirectional.
        """
        ...

    def linear(self, tower: Tower, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
        """y = frozen projection `name` ("q", "k", "v", "o", "fc1", "fc2") of x, both (*, T, ·);
        returns what to use instead, for instance y plus a low-rank update of x.
        """
        ...


class NoTap:
    """The tap that changes nothing; subclass it and override what you need."""

    def tokens(self, tower: Tower, layer: int, x: Tensor) -> Tensor:
        """x as it is."""
        return x

    def linear(self, tower: Tower, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
        """y as it is."""
        return y


class ImageBackbone(ABC):
    """An image tower without a text tower (timm, self-supervised towers).

    name: what tables show. dim: D. vision_width: width of the vision transformer's tokens, None for
    other towers. vision_layers: its number of blocks, 0 for other towers. image_size: H, the side
    of the square that `preprocess` gives. fingerprint: digest of weights, architecture and
    preprocessing. notes: what a user must know of the checkpoint; a run shows them. remote_code:
    SHA-256 of the code of its repository that was run, "" if there was none.
    """

    name: str
    dim: int
    vision_width: int | None
    vision_layers: int
    image_size: int
    fingerprint: str
    licence: str = "unknown"
    citation: str = ""
    notes: tuple[str, ...] = ()
    remote_code: str = ""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The towers' device."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move the towers."""

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Tensor:
        """The evaluation transform: RGB image -> (3,H,H) float32. A training view is already
        cropped to H x H, has VIEW_MARK in its `info`, and is only normalised."""

    def preprocess_alone(self) -> Callable[[Image.Image], Tensor] | None:
        """The transform of `preprocess` as a picklable object without the backbone and its weights,
        so that processes can decode images. None: threads decode."""
        return None

    @abstractmethod
    def encode_image(self, pixels: Tensor, tap: Tap | None = None) -> Tensor:
        """(B,3,H,H) -> (B,D), as the tower gives it, not normalised.

        Raises UnsupportedError for a tap on a tower that has no transformer blocks.
        """

    @abstractmethod
    def trainable_copy(self, pretrained: bool = True) -> nn.Module:
        """A copy of the image tower (B,3,H,H) -> (B,D) that may be trained; with
        `pretrained=False` freshly initialised."""


class Backbone(ImageBackbone):
    """Both towers of a CLIP-like model, frozen.

    width: W. text_layers: blocks of the text tower. context_length: the most tokens of a text,
    start, context and end included. training_precision: set by the engine; "bf16" lets passes that
    carry a gradient run in bfloat16, their results and all else stay fp32. memory_budget: set by
    the engine; bytes that a pass may keep for the gradient, beyond which values are computed again.
    logit_scale: the checkpoint's temperature, after exp.
    """

    training_precision: Literal["fp32", "bf16"] = "fp32"
    memory_budget: int = 1 << 30
    width: int
    text_layers: int
    context_length: int
    logit_scale: float

    @abstractmethod
    def embed(self, texts: Texts) -> Prompts:
        """Tokenise texts. A text is a str, or a tuple of pieces whose joints the context fills:

        ("", "nevus.") end · ("", "nevus", ".") middle, M//2 vectors first · ("nevus", ".") front.

        A flat sequence of C texts gives *N = (C,); nested sequences give (C, K), ragged ones
        padded with a mask. All texts of a call have equally many pieces.
        Raises TextError for a text longer than `context_length`, naming it.
        """

    @abstractmethod
    def embed_words(self, words: str) -> Tensor:
        """Token embeddings (n, W) of `words`, without start and end: to start a context from."""

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of `text` (letters, digits and `_` in a row) that the tokenizer has no tokens
        for, so that it cannot distinguish them; () if there are none, or if the backbone does not
        report them."""
        return ()

    def vocabulary(self) -> tuple[list[str], Tensor]:
        """The tokens that are words or parts of words, as they read, and their embeddings (V, W):
        those alone that training saw. ([], (0, W)) if the backbone does not report it. Explanations
        read it to name what lies near a learned context vector."""
        return [], torch.empty(0, self.width)

    @abstractmethod
    def encode_text(
        self, prompts: Prompts, context: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Features (*L, D) of texts (*N, S), not normalised, differentiable in `context` and in
        whatever `tap` brings in.

        context: (M,W) or (*L,M,W), its leading dimensions broadcasting against *N: class
        (C,M,W); nested class (C,1,M,W); image (B,1,M,W) -> (B,C,D).
        Works under torch.func.grad and vmap.
        """


class UnsupportedError(ValueError):
    """A combination is impossible; the message is shown as the reason of the cell."""


class TextError(ValueError):
    """A text does not fit the text tower."""
