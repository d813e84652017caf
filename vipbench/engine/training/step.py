"""One step of stacked cells: gradients by torch.func, optimizer, and what is told of it.

All that it reads and writes keeps its place from step to step. Its operations may therefore be
recorded once and repeated, as `replay` does on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vjp, vmap

from vipbench.api import Batch, Method
from vipbench.engine.training.batches import Inputs, sent
from vipbench.engine.training.optim import Optimizer, Tensors, corrections
from vipbench.engine.training.stacking import TrainCell


class _Loss(nn.Module):
    # functional_call replaces the parameters for the length of a forward; the loss must be one.
    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, x: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The losses, and how many images of the batch the method's own forward had right: NaN
        where its loss does not call it on them."""
        seen: list[Tensor] = []
        hook = self.method.register_forward_hook(lambda _, __, logits: seen.append(logits))
        try:
            loss = self.method.loss(Batch(x, labels, weight))
        finally:
            hook.remove()
        right = torch.full_like(weight.sum(), math.nan)
        # The first call: some losses then ask for others, of other images or texts.
        if seen and seen[0].dim() == 2 and len(seen[0]) == len(labels):
            right = ((seen[0].detach().argmax(-1) == labels) & (weight > 0)).sum().to(right)
        return (loss if isinstance(loss, tuple) else (loss,)), right


class Step:
    """The stacked state of some cells, and one step of it.

    params, fixed, buffers: (cells, *) by name; names begin with "method.".
    told: (3, cells), the loss, gradient norm and images had right of the last step.
    """

    def __init__(self, cells: Sequence[TrainCell], steps: int) -> None:
        self.loss = _Loss(cells[0].method)
        trained = [k for k, v in self.loss.named_parameters() if v.requires_grad]
        params, buffers = stack_module_state([_Loss(cell.method) for cell in cells])
        self.fixed: Tensors = {k: v.detach() for k, v in params.items() if k not in trained}
        self.params: Tensors = {k: params[k].detach() for k in trained}
        self.buffers: Tensors = dict(buffers)
        self.optimizer = Optimizer(cells[0].recipe, self.params)
        some = self.params[trained[0]]
        self.told = some.new_zeros(3, len(cells), dtype=torch.float32)
        # A stack of one may go another way than vmap; of cells that were many, the last stays.
        self._vectorised = len(cells) > 1
        self._inputs: Inputs | None = None
        self._corrections = sent(corrections(cells[0].recipe, steps), some.device)
        self._correction = torch.empty_like(self._corrections[0])

    def set(self, inputs: Inputs, number: int) -> None:
        """What the next step works on. number: of the step, from 0."""
        self._inputs = inputs
        self._correction.copy_(self._corrections[number])

    def __call__(self) -> None:
        """One step: parameters, optimizer and `told` are written in place."""
        assert self._inputs is not None
        gradients = vmap(self._one, randomness="error") if self._vectorised else self._alone
        values, grads, right = gradients(
            self.params, self.fixed, self.buffers,
            self._inputs.x, self._inputs.labels, self._inputs.weight,
        )  # fmt: skip
        squares = [g.unsqueeze(-1).flatten(1).square().sum(1) for g in grads.values()]
        norm = torch.stack(squares).sum(0).sqrt()
        self.told.copy_(torch.stack([values.detach().float(), norm.float(), right.float()]))
        self.optimizer.step(self.params, grads, self._inputs.rates, self._correction)

    def written(self) -> list[Tensor]:
        """What a step writes: `told`, then (cells,*) each. torch.func refuses to write buffers."""
        parts = (self.params, self.optimizer.first, self.optimizer.second)
        return [self.told, *(value for part in parts for value in part.values())]

    def noise(self, name: str, draws: Sequence[Tensor]) -> None:
        """Fill the buffer `name` of every cell with that cell's draw, made on the CPU."""
        buffer = self.buffers[f"method.{name}"]
        buffer.copy_(sent(torch.stack(list(draws)), buffer.device))

    def keep(self, live: Sequence[int]) -> None:
        """Go on with the cells `live`; everything gets a new place."""
        chosen = torch.tensor(live, device=self.told.device)
        for state in (
            self.params, self.fixed, self.buffers, self.optimizer.first, self.optimizer.second
        ):  # fmt: skip
            for name, value in state.items():
                state[name] = value[chosen]
        self.told = self.told[:, chosen]

    def _one(
        self,
        params: Tensors,
        fixed: Tensors,
        buffers: Tensors,
        x: Tensor,
        labels: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensors, Tensor]:
        """A cell's loss, gradients and images had right."""

        def losses(trained: Tensors) -> tuple[tuple[Tensor, ...], Tensor]:
            state = {**fixed, **buffers, **trained}
            out: Any = functional_call(self.loss, state, (x, labels, weight))
            return out[0], out[1]

        linear: Any = vjp(losses, params, has_aux=True)
        values, pull, right = linear
        ones = torch.ones_like(values[0])
        each: list[Tensors] = []
        for i in range(len(values)):
            chosen = tuple(ones if j == i else torch.zeros_like(ones) for j in range(len(values)))
            each.append(pull(chosen, retain_graph=i + 1 < len(values))[0])
        if len(each) == 1:
            return values[0], each[0], right
        combined = {k: self.loss.method.combine(tuple(g[k] for g in each)) for k in params}
        return torch.stack(values).sum(), combined, right

    def _alone(self, *stacked: Any) -> tuple[Tensor, Tensors, Tensor]:
        """`_one` of the only cell of a stack."""
        p, f, b = ({k: v[0] for k, v in part.items()} for part in stacked[:3])
        value, grads, right = self._one(p, f, b, *(part[0] for part in stacked[3:]))
        return value[None], {k: v[None] for k, v in grads.items()}, right[None]
