"""Whether a learned context fits the texts that it is to enter."""

from __future__ import annotations

import torch
from torch import Tensor

from vipbench.api import Prompts, TextError
from vipbench.backbones._layout import longest
from vipbench.backbones._texts import Wordpieces


def context_tokens(
    prompts: Prompts,
    context: Tensor | None,
    width: int,
    context_length: int,
    wordpieces: Wordpieces,
) -> int:
    """M, 0 without a context. Raises ValueError or TextError where prompts and context do not
    fit together, or are longer than the tower."""
    if context is None:
        return 0
    if prompts.gaps is None:
        raise ValueError(
            "these texts have no place for a context: embed them as tuples of pieces, for "
            "instance ('', 'nevus.')"
        )
    if context.dim() < 2 or context.shape[-1] != width:
        raise ValueError(f"the context has shape {tuple(context.shape)}; expected (*L, M, {width})")
    try:
        torch.broadcast_shapes(prompts.shape, context.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"a context of shape {tuple(context.shape)} does not broadcast against texts of "
            f"shape {tuple(prompts.shape)}: its dimensions before (M, W) must be theirs, or 1"
        ) from None
    m = context.shape[-2]
    most = longest(prompts)
    if most + m > context_length:
        at = int(prompts.lengths.flatten().argmax())
        ids = prompts.tokens.flatten(0, -2)[at, :most].tolist()
        raise TextError(
            f"the text '{wordpieces.decode(ids)}' has {most} tokens with start and "
            f"end, and the context adds {m}; the text tower takes at most "
            f"{context_length}: shorten the text or the context"
        )
    return m
