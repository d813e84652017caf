"""Deep prompts: learned rows before a tower's blocks, and the words that a context starts from.

Shapes: M prompt rows, W and V the widths of the text and the vision tower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vipbench import api


class DeepPrompts(api.NoTap):
    """Prompt rows of their own before the first blocks of each tower.

    text (d-1,M,W): before block i = 1…d-1, row i-1 takes the place of what the block before made
    of the context, which stands in rows `first`…`first`+M-1 and has entered with the text.
    vision (d,M,V): row 0 is appended before block 0, row i takes the last M rows' place before
    block i. Blocks d and above see what the block before made of the prompts. None: that tower
    has no prompts here. Rows carry no positional embedding.
    """

    def __init__(
        self, text: Tensor | None = None, vision: Tensor | None = None, first: int = 1
    ) -> None:
        self.text, self.vision, self.first = text, vision, first

    def tokens(self, tower: api.Tower, layer: int, x: Tensor) -> Tensor:
        """See `Tap.tokens`."""
        prompts, index = (self.text, layer - 1) if tower == "text" else (self.vision, layer)
        if prompts is None or not 0 <= index < len(prompts):
            return x
        m = prompts.shape[-2]
        rows = prompts[index].to(x.dtype).expand(*x.shape[:-2], -1, -1)
        if tower == "text":
            return torch.cat([x[..., : self.first, :], rows, x[..., self.first + m :, :]], -2)
        return torch.cat([x if layer == 0 else x[..., : x.shape[-2] - m, :], rows], -2)


class PromptedTowers(api.Method):
    """A method whose tap and context prompt both towers of a CLIP."""

    inputs = "images"
    needs = frozenset({"text", "vit"})
    prompts: api.Prompts
    context: Tensor  # (M,W)

    def tap(self) -> api.Tap:
        """Both towers' prompts."""
        raise NotImplementedError

    def score(self, x: Tensor, size: int) -> Tensor:
        """(N,3,H,H) -> (N,C), `size` images at a time; the texts are encoded once."""
        tap = self.tap()
        classes = self.task.encode_text(self.prompts, self.context, tap)  # (C,D)
        parts = [self.task.backbone.encode_image(some, tap) for some in x.split(size)]
        return self.task.cosine_logits(torch.cat(parts), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,C)."""
        return self.score(x, len(x))

    def predict(self, x: Tensor) -> Tensor:
        """(N,3,H,H) -> (N,C)."""
        return self.score(x, 64)


def first_row(prompts: api.Prompts) -> int:
    """The row in which the context of `prompts` starts: 1 behind a start token, 0 without one."""
    assert prompts.gaps is not None
    return int(prompts.gaps.flatten()[0])


def starting_words(
    task: api.Task, words: str, n_ctx: int, many: tuple[int, ...] = ()
) -> tuple[Tensor, str]:
    """A context (*many,M,W) to start from, and which of `words` are left over for the text itself.

    The first M tokens of `words` start the context. Where `words` are fewer tokens than that, or
    none, the context is drawn from N(0, 0.02²) and nothing is left over. many: (C,) for a context
    of each class; all start from the same words.
    Raises UnsupportedError where M tokens end within a word.
    """
    parts = words.split()
    if parts:
        tokens = task.backbone.embed_words(words)
        if len(tokens) >= n_ctx:
            for i in range(1, len(parts) + 1):
                if len(task.backbone.embed_words(" ".join(parts[:i]))) == n_ctx:
                    start = tokens[:n_ctx].expand(*many, -1, -1).clone()
                    return start, " ".join(parts[i:])
            raise api.UnsupportedError(
                f"{n_ctx} context vectors split a word of '{words}' under the tokenizer of "
                f"'{task.backbone.name}'; choose another n_ctx or context_init"
            )
    return task.normal("context", *many, n_ctx, task.info.width), ""
