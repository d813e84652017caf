"""Many short texts in few sequences, every shared beginning once.

A causal tower gives a token the same features whatever follows it. So texts that begin alike
(start token and learned context) need that beginning, the stem, only once; what is different
behind it, the leaves, may stand one after the other in the same sequence, where a leaf's rows
see its own earlier rows and its stem's. Positions are those that a row has in its own text, so
the result is that of each text alone.

Shapes: P packed sequences, R rows of each, E end tokens of each (both padded to the longest),
M context vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vipbench.api import Prompts
from vipbench.backbones.towers.layout import lay_out
from vipbench.backbones.towers.masks import additive


@dataclass(frozen=True)
class Packing:
    """Index tables of a packed call; a slice of the sequences is a packing too.

    tokens (P,R): token id of a row; 0 where the row is a context vector or padding.
    is_token (P,R): bool. positions (P,R): the row's place in its own text.
    slots, vectors: flat row numbers p·R + r that take a context vector, and which (context·M +
    vector); both (V,). seen (P,R,R): bool, may row i look at row j. ends (P,E): end token rows.
    whole: False for one of `parts`.

    What is computed from these is kept as long as they are: a step that is recorded on a GPU can
    neither ask for values nor find again what was thrown away.
    """

    tokens: Tensor
    is_token: Tensor
    positions: Tensor
    slots: Tensor
    vectors: Tensor
    seen: Tensor
    ends: Tensor
    whole: bool = True
    _masks: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _parts: dict[int, list[Packing]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """P."""
        return len(self.tokens)

    @property
    def rows(self) -> int:
        """P · R."""
        return self.tokens.numel()

    def masks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to attention: of all rows (P,R,R), and of the end token rows (P,E,R).

        Kept for the whole alone: parts are made where memory is scarce.
        """
        if dtype in self._masks:
            return self._masks[dtype]
        rows = self.ends.unsqueeze(-1).expand(-1, -1, self.seen.shape[-1])
        masks = additive(self.seen, dtype), additive(self.seen.gather(1, rows), dtype)
        if self.whole:
            self._masks[dtype] = masks
        return masks

    def parts(self, rows: int) -> list[Packing]:
        """Packings of at most about `rows` rows each, in order."""
        size = max(1, rows // self.tokens.shape[1])
        if size >= len(self):
            return [self]
        if size not in self._parts:
            self._parts[size] = [self._part(i, size) for i in range(0, len(self), size)]
        return self._parts[size]

    def _part(self, start: int, size: int) -> Packing:
        p = slice(start, start + size)
        first, behind = (n * self.tokens.shape[1] for n in (start, start + size))
        mine = (self.slots >= first) & (self.slots < behind)
        return Packing(
            self.tokens[p],
            self.is_token[p],
            self.positions[p],
            self.slots[mine] - first,
            self.vectors[mine],
            self.seen[p],
            self.ends[p],
            whole=False,
        )


@dataclass(frozen=True)
class Packed:
    """A packing, and where each text's features come out.

    outputs (*L,): index into the P·E end tokens, *L the texts broadcast with the contexts.
    """

    packing: Packing
    outputs: Tensor


# One row of a text: a token id, or context vector -1 - i.
_Row = int


@dataclass
class _Sequence:
    rows: list[tuple[_Row, int, int, int]] = field(default_factory=list)  # row, position, own, stem
    ends: list[int] = field(default_factory=list)
    stems: dict[tuple[_Row, ...], int] = field(default_factory=dict)


def pack(prompts: Prompts, m: int, contexts: torch.Size, limit: int) -> Packed:
    """Pack `prompts` with `m` context vectors from contexts of leading shape `contexts`.

    `contexts` broadcasts against the shape of `prompts`. limit: rows of a sequence, as far as
    its longest text allows; attention costs the square of it.
    """
    layout = lay_out(prompts, m)
    shape = torch.broadcast_shapes(prompts.shape, contexts)
    n_texts = prompts.lengths.numel()
    text_of = torch.arange(n_texts).reshape(prompts.shape).expand(shape).flatten().tolist()
    context_of = torch.arange(contexts.numel()).reshape(contexts).expand(shape).flatten().tolist()
    s = prompts.tokens.shape[-1]
    tokens = prompts.tokens.reshape(n_texts, s).tolist()
    sources = layout.source.reshape(n_texts, -1).tolist()
    ends = layout.end.flatten().tolist()

    def rows_of(text: int, context: int) -> tuple[_Row, ...]:
        source = sources[text][: ends[text] + 1]
        return tuple(tokens[text][i] if i < s else -1 - (context * m + i - s) for i in source)

    pairs = [rows_of(t, c) for t, c in zip(text_of, context_of, strict=True)]
    unique = list(dict.fromkeys(pairs))
    stems = _stems(unique, m)
    total = sum(len(rows) - len(stems[rows]) for rows in unique)
    total += sum(len(stem) for stem in set(stems.values()))
    # Evenly filled sequences leave the least padding.
    capacity = -(-total // max(1, round(total / limit)))
    sequences, place = _fill(unique, stems, capacity)
    return Packed(*_tables(sequences, place, pairs, shape, prompts.tokens.device))


def _stems(texts: list[tuple[_Row, ...]], m: int) -> dict[tuple[_Row, ...], tuple[_Row, ...]]:
    """Each text's stem: all up to its first run of context vectors, with them; without context
    what all texts begin with. The end token is never part of it."""
    if m:
        return {rows: rows[: _behind_first_run(rows)] for rows in texts}
    common = 0
    for column in zip(*(rows[:-1] for rows in texts), strict=False):
        if len(set(column)) > 1:
            break
        common += 1
    return {rows: rows[:common] for rows in texts}


def _behind_first_run(rows: tuple[_Row, ...]) -> int:
    i = next((i for i, row in enumerate(rows) if row < 0), 0)
    while rows[i] < 0:
        i += 1
    return i


def _fill(
    texts: list[tuple[_Row, ...]], stems: dict[tuple[_Row, ...], tuple[_Row, ...]], capacity: int
) -> tuple[list[_Sequence], dict[tuple[_Row, ...], tuple[int, int]]]:
    """Put the texts into sequences one after the other; where each one's end token is."""
    sequences = [_Sequence()]
    place = {}
    for text in texts:
        stem = stems[text]
        current = sequences[-1]
        new = 0 if stem in current.stems else len(stem)
        if current.rows and len(current.rows) + new + len(text) - len(stem) > capacity:
            current = _Sequence()
            sequences.append(current)
        if stem not in current.stems:
            own = len(current.rows)
            current.stems[stem] = own
            current.rows += [(row, i, own, own) for i, row in enumerate(stem)]
        own = len(current.rows)
        root = current.stems[stem] if stem else own
        current.rows += [
            (row, i, own, root) for i, row in enumerate(text[len(stem) :], start=len(stem))
        ]
        place[text] = (len(sequences) - 1, len(current.ends))
        current.ends.append(len(current.rows) - 1)
    return sequences, place


def _tables(
    sequences: list[_Sequence],
    place: dict[tuple[_Row, ...], tuple[int, int]],
    pairs: list[tuple[_Row, ...]],
    shape: torch.Size,
    device: torch.device,
) -> tuple[Packing, Tensor]:
    r = max(len(seq.rows) for seq in sequences)
    e = max(len(seq.ends) for seq in sequences)
    # Padding rows are segments of their own, which nothing looks at.
    table = torch.tensor(
        [
            [*seq.rows, *((0, 0, -1 - i, -1 - i) for i in range(len(seq.rows), r))]
            for seq in sequences
        ]
    )  # (P, R, 4)
    rows, positions, own, stem = table.unbind(-1)
    is_context = rows < 0
    seen = (own.unsqueeze(-2) == own.unsqueeze(-1)) | (own.unsqueeze(-2) == stem.unsqueeze(-1))
    ends = torch.tensor([[*seq.ends, *[0] * (e - len(seq.ends))] for seq in sequences])
    packing = Packing(
        tokens=rows.clamp(min=0).to(device),
        is_token=(~is_context).to(device),
        positions=positions.contiguous().to(device),
        slots=is_context.flatten().nonzero().squeeze(-1).to(device),
        vectors=(-1 - rows[is_context]).to(device),
        seen=seen.tril().to(device),
        ends=ends.to(device),
    )
    outputs = torch.tensor([p * e + i for p, i in (place[rows] for rows in pairs)])
    return packing, outputs.reshape(shape).to(device)
