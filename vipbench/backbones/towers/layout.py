"""Where every row of a text with learned context comes from.

Shapes: *N texts, S their tokens, M context vectors, G gaps, T = S + M rows of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vipbench.api import Prompts, TextError
from vipbench.backbones.towers.tokens import Wordpieces


@dataclass(frozen=True)
class Layout:
    """Texts with M context vectors filled in.

    source: (*N, T) int64: row t of a text is its token `source` where that is below S, else
    context vector `source - S`. end: (*N,) int64: the row of the end token. rows: of the longest
    text.
    """

    source: Tensor
    end: Tensor
    rows: int


# Layouts and lengths of prompts that live, by their tensor `lengths`: a GPU is waited for once.
_KNOWN: Any = WeakIdKeyDictionary()


def longest(prompts: Prompts) -> int:
    """Tokens of the longest of `prompts`, start and end included."""
    known = _KNOWN.setdefault(prompts.lengths, {})
    if "longest" not in known:
        known["longest"] = int(prompts.lengths.max())
    found: int = known["longest"]
    return found


def lay_out(prompts: Prompts, m: int) -> Layout:
    """The layout of `prompts` with M = `m` context vectors (see `Prompts.gaps`), made once."""
    known = _KNOWN.setdefault(prompts.lengths, {})
    key = m, prompts.tokens.shape[-1]
    gaps, layout = known.get(key, (None, None))
    if layout is None or gaps is not prompts.gaps:
        layout = _lay_out(prompts, m)
        known[key] = prompts.gaps, layout
    made: Layout = layout
    return made


def _lay_out(prompts: Prompts, m: int) -> Layout:
    s = prompts.tokens.shape[-1]
    device = prompts.tokens.device
    token = torch.arange(s, device=device)
    if prompts.gaps is None or m == 0:
        return Layout(token.expand(*prompts.shape, s), prompts.lengths - 1, longest(prompts))
    n_gaps = prompts.gaps.shape[-1]
    share = m // n_gaps
    sizes = torch.full((n_gaps,), share, device=device)
    sizes[-1] += m - share * n_gaps
    # A token moves behind the vectors of every gap that lies before it; a vector stands behind
    # the tokens before its own gap and the vectors before it.
    before = prompts.gaps.unsqueeze(-2) <= token.unsqueeze(-1)  # (*N, S, G)
    to_token = token + (before * sizes).sum(-1)
    vector = torch.arange(m, device=device)
    gap_of = torch.repeat_interleave(torch.arange(n_gaps, device=device), sizes)
    to_vector = prompts.gaps[..., gap_of] + vector
    place = torch.cat([to_token, to_vector], -1)  # (*N, T): where token or vector i goes
    source = torch.empty_like(place)
    source.scatter_(-1, place, torch.arange(s + m, device=device).expand_as(place))
    return Layout(source, prompts.lengths - 1 + m, longest(prompts) + m)


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
