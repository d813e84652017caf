"""TransCLIP's solver: a Gaussian mixture over the images to classify, held to the texts.

Shapes: Q images to classify, S support images, C classes, D width, R = S + Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The official program's scale of the neighbour term, the exponent and γ.
SCALE = 50.0
CHUNK = 4096


@dataclass(frozen=True)
class Labelled:
    """Support features of unit length (S,D), and their one-hot labels (S,C)."""

    x: Tensor
    member: Tensor


@dataclass(frozen=True)
class Affinity:
    """The kept neighbours of each row: index and value (R,k), of the queries. A matrix (R,Q)."""

    index: Tensor
    value: Tensor

    def times(self, z: Tensor) -> Tensor:
        """(R,Q) · (Q,C) -> (R,C)."""
        return (self.value.unsqueeze(-1) * z[self.index]).sum(1)

    def transposed_times(self, z: Tensor, queries: int) -> Tensor:
        """(R,Q)ᵀ · (R,C) -> (Q,C)."""
        spread = self.value.unsqueeze(-1) * z.unsqueeze(1)  # (R,k,C)
        out = z.new_zeros(queries, z.shape[1])
        return out.index_add(0, self.index.flatten(), spread.flatten(0, 1))


def affinity(q: Tensor, support: Tensor | None, neighbours: int, official: bool) -> Affinity:
    """Rows: support images, then queries. A query's nearest is itself and does not count; the
    official program drops the nearest of support images too."""
    rows = q if support is None else torch.cat([support, q])
    own = 0 if support is None or official else len(support)
    kept = min(neighbours, len(q) - 1)
    index, value = [], []
    for start in range(0, len(rows), CHUNK):
        values, places = (rows[start : start + CHUNK] @ q.T).topk(kept + 1, dim=1)
        itself = (torch.arange(start, start + len(values)) >= own).long().to(q.device)
        pick = itself.unsqueeze(1) + torch.arange(kept, device=q.device)
        index.append(places.gather(1, pick))
        value.append(values.gather(1, pick))
    return Affinity(torch.cat(index), torch.cat(value))


def confident_means(q: Tensor, z: Tensor, n_most_confident: int) -> Tensor:
    """(C,D): of each class the unit-length mean of its most confident queries, weighted by z."""
    count = min(n_most_confident, len(q))
    top = z.topk(count, dim=0)  # (count,C)
    means = (top.values.unsqueeze(-1) * q[top.indices]).mean(0)
    return F.normalize(means, dim=-1)


def solve(
    q: Tensor,
    y: Tensor,
    support: Labelled | None,
    gammas: tuple[float, ...],
    *,
    text_weight: float,
    max_iter: int = 10,
    inner_iter: int = 5,
    n_neighbors: int = 3,
    n_most_confident: int = 8,
    official: bool = False,
    moving: bool = False,
) -> Iterator[Tensor]:
    """Assignments z (Q,C), rows summing to 1, after each γ in turn.

    q: (Q,D) of unit length. y: (Q,C) first assignments, to which z is held with `text_weight`.
    official: pairs the rows of the neighbour matrix with the samples as the official few-shot
    program does (support rows first in the one, last in the other), and lets each γ go on from
    the last one's state. moving: y follows z, as in the official program for given predictions.
    """
    close = affinity(q, None if support is None else support.x, n_neighbors, official)
    start = confident_means(q, y, n_most_confident)
    if support is not None:
        counted = support.member.sum(0).unsqueeze(1) > 0
        start = torch.where(counted, F.normalize(support.member.T @ support.x, dim=-1), start)
    tiny = torch.finfo(q.dtype).tiny
    z, means = y, start
    variance = q.new_full((q.shape[1],), 1 / q.shape[1])  # (D,)
    for gamma in gammas:
        if not official:
            z, means, variance = y, start, torch.full_like(variance, 1 / q.shape[1])
        share = 0.0 if support is None else SCALE * gamma / len(support.x)
        for step in range(max_iter + 1):
            fit = _log_likelihood(q, means, variance)
            for _ in range(inner_iter):
                near = _neighbours(close, z, support, official)
                push = fit + SCALE / (2 * n_neighbors) * near
                push = push - push.amax(1, keepdim=True)
                held = z if moving else y
                z = held**text_weight * (push / SCALE).exp()
                z = z / z.sum(1, keepdim=True).clamp(min=tiny)
            if step == max_iter:
                break
            mass, total = z.mean(0), z.T @ q / len(q)  # (C,), (C,D)
            if support is not None:
                mass = mass + share * support.member.sum(0)
                total = total + share * support.member.T @ support.x
            means = F.normalize(total / mass.clamp(min=tiny).unsqueeze(1), dim=-1)
            variance = _variance(q, z, means, support, share) / mass.sum()
            # A handful of images may lie on their means.
            variance = variance.clamp(min=1e-12)
        yield z


def _log_likelihood(q: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    each = [-0.5 * ((q - mean).square() / variance).sum(-1) for mean in means]
    return torch.stack(each, dim=1)  # (Q,C)


def _variance(
    q: Tensor, z: Tensor, means: Tensor, support: Labelled | None, share: float
) -> Tensor:
    around = torch.zeros_like(q[0])
    for c, mean in enumerate(means):
        around = around + z[:, c] @ (q - mean).square() / len(q)
    if support is not None:
        around = around + share * (support.x - support.member @ means).square().sum(0)
    return around


def _neighbours(close: Affinity, z: Tensor, support: Labelled | None, official: bool) -> Tensor:
    """Wᵀ·z of all rows plus W·z of the queries: (Q,C)."""
    if support is None:
        return close.transposed_times(z, len(z)) + close.times(z)
    forward = close.times(z)  # (R,C)
    if official:
        rows = torch.cat([z, support.member])
        return close.transposed_times(rows, len(z)) + forward[: len(z)]
    rows = torch.cat([support.member, z])
    return close.transposed_times(rows, len(z)) + forward[len(support.x) :]
