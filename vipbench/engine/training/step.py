"""One step of stacked cells: gradients by torch.func, optimizer, and its statistics.

All that it reads and writes keeps its place from step to step. Its operations may therefore be
recorded once and repeated, as `replay` does on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_map

from vipbench.api import Batch, Method
from vipbench.engine.machine import sent
from vipbench.engine.training.batches import Inputs
from vipbench.engine.training.optim import Optimizer, Tensors, corrections
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.written import BUILTIN, place, refuse_batch_norm, rehearse, unwritten

Batched = tuple[Tensor, Tensor, Tensor]
# How far padding may move the gradients of a user's method, in relation to the largest.
PADDING = 1e-3


class PaddingError(RuntimeError):
    """A method's loss reads images that only fill up a batch."""


class _Called(nn.Module):
    # functional_call replaces parameters and buffers for the length of a forward; whatever of a
    # method is called in a step must be one.
    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        # While they are replaced no parameter asks for a gradient.
        self.trained = {name for name, p in method.named_parameters() if p.requires_grad}

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        """`call` of this object, which must leave the method as it is."""
        with unwritten(self.method):
            return call(*args)

    def losses(
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

    def combined(self, grads: Sequence[Tensors]) -> Tensors:
        """Of every parameter the gradient to use. grads: one dict for each loss."""
        return {k: self.method.combine(tuple(g[k] for g in grads)) for k in grads[0]}

    @torch.no_grad()
    def after(self, x: Tensor, labels: Tensor, weight: Tensor) -> Tensors:
        """What `after_step` gives, checked, by names that begin with "method."."""
        method = self.method
        with last_batch(method, Batch(x, labels, weight)):
            given = method.after_step()
        who = f"after_step of method '{method.name}'"
        if not isinstance(given, Mapping):
            raise TypeError(f"{who} gave {type(given).__name__}; expected buffer name -> tensor")
        trained = self.trained
        held = {**dict(method.named_parameters()), **dict(method.named_buffers())}
        for name, value in given.items():
            if name in trained or name not in held:
                what = "a parameter, which the optimizer writes" if name in trained else "no buffer"
                known = ", ".join(f"'{k}'" for k in held if k not in trained) or "none"
                raise ValueError(f"{who} gave '{name}', {what}; buffers: {known}")
            got = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value)
            if got != (expected := (tuple(held[name].shape), held[name].dtype)):
                raise ValueError(f"{who} gave {got} for '{name}'; expected {expected}")
        return {f"method.{name}": value for name, value in given.items()}


@contextmanager
def last_batch(method: Method, batch: Batch) -> Iterator[None]:
    """In the block `method.last_batch` is `batch`."""
    vars(method)["last_batch"] = batch
    try:
        yield
    finally:
        del vars(method)["last_batch"]


class Step:
    """The stacked state of some cells, and one step of it.

    params, fixed, buffers: (cells, *) by name; names begin with "method.". padded: whether batches
    hold images of weight 0. statistics: (3, cells), the loss, gradient norm and images had right of
    the last step. changing: names of the buffers and frozen parameters that `after_step` writes;
    known after a step.
    """

    def __init__(self, cells: Sequence[TrainCell], steps: int, padded: bool = False) -> None:
        method = cells[0].method
        self._padded = padded and not type(method).__module__.startswith(BUILTIN)
        refuse_batch_norm(method)
        self.called = _Called(method)
        self.changing: tuple[str, ...] = ()
        self._updates = type(method).after_step is not Method.after_step
        self._rehearsed = method.trains_towers
        trained = [k for k, v in self.called.named_parameters() if v.requires_grad]
        params, buffers = stack_module_state([_Called(cell.method) for cell in cells])
        self.fixed: Tensors = {k: v.detach() for k, v in params.items() if k not in trained}
        self.params: Tensors = {k: params[k].detach() for k in trained}
        self.buffers: Tensors = dict(buffers)
        self.optimizer = Optimizer(cells[0].recipe, self.params)
        some = self.params[trained[0]]
        self.statistics = some.new_zeros(3, len(cells), dtype=torch.float32)
        # A stack of one may go another way than vmap; of cells that were many, the last stays.
        self._vectorised = len(cells) > 1
        self._inputs: Inputs | None = None
        self._corrections = sent(corrections(cells[0].recipe, steps, some.device), some.device)
        self._correction = torch.empty_like(self._corrections[0])

    def set(self, inputs: Inputs, number: int) -> None:
        """What the next step works on. number: of the step, from 0."""
        self._inputs = inputs
        self._correction.copy_(self._corrections[number])

    def __call__(self) -> None:
        """One step: parameters, optimizer, what `after_step` gives and `statistics` are written in
        place. Raises WrittenStateError where the method writes anything else."""
        assert self._inputs is not None
        batch = (self._inputs.x, self._inputs.labels, self._inputs.weight)
        if not self._rehearsed:
            self._rehearse(batch)
        try:
            values, grads, right = self._each(self._one, batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # perhaps of a write that earlier steps did not do
            if not self.called.method.trains_towers:
                self._rehearse(batch)
            raise
        squares = [g.unsqueeze(-1).flatten(1).square().sum(1) for g in grads.values()]
        norm = torch.stack(squares).sum(0).sqrt()
        self.statistics.copy_(torch.stack([values.detach().float(), norm.float(), right.float()]))
        self.optimizer.step(self.params, grads, self._inputs.rates, self._correction)
        if self._updates:
            self._update(batch)

    def written(self) -> list[Tensor]:
        """What a step writes: `statistics`, then (cells,*) each."""
        parts = (self.params, self.optimizer.first, self.optimizer.second)
        changed = [self._held(name) for name in self.changing]
        return [self.statistics, *(value for part in parts for value in part.values()), *changed]

    def state_of(self, index: int) -> Tensors:
        """A copy of what training changes of one cell: parameters and what `after_step` gives,
        and, where towers are trained, the statistics of their batch normalisations, which the
        passes write."""
        state = self.params | {name: self._held(name) for name in self.changing}
        if self.called.method.trains_towers:
            state |= self.buffers
        return {name: value[index].clone() for name, value in state.items()}

    def noise(self, name: str, draws: Sequence[Tensor]) -> None:
        """Fill the buffer `name` of every cell with that cell's draw, made on the CPU."""
        buffer = self.buffers[f"method.{name}"]
        buffer.copy_(sent(torch.stack(list(draws)), buffer.device))

    def keep(self, live: Sequence[int]) -> None:
        """Go on with the cells `live`; everything gets a new place."""
        chosen = torch.tensor(live, device=self.statistics.device)
        for state in (
            self.params,
            self.fixed,
            self.buffers,
            self.optimizer.first,
            self.optimizer.second,
        ):
            for name, value in state.items():
                state[name] = value[chosen]
        self.statistics = self.statistics[:, chosen]

    def _held(self, name: str) -> Tensor:
        return self.buffers[name] if name in self.buffers else self.fixed[name]

    def _call(self, call: Callable[..., Any], state: Tensors, *args: Any) -> Any:
        return functional_call(self.called, state, (call, *args))

    def _rehearse(self, batch: Batched) -> None:
        """The first cell's loss and `after_step`, on copies of all that they could write."""
        self._rehearsed = True
        one = tuple(part[0] for part in batch)
        trained = {name: value[0] for name, value in self.params.items()}
        state = {name: value[0] for name, value in (*self.fixed.items(), *self.buffers.items())}

        def work(copies: Tensors) -> None:
            self._call(self.called.losses, copies, *one)
            if self._updates:
                self._call(self.called.after, copies, *one)

        rehearse(self.called.method, work, state, trained)
        if self._padded:
            self._padded = False
            self._check_padding(one)

    def _check_padding(self, first: Sequence[Tensor]) -> None:
        """Raises PaddingError where the first image of the batch `first`, repeated with weight 0,
        moves the first cell's gradients, or what its `after_step` gives."""
        batch = [part[first[2] > 0] for part in first]
        more = [torch.cat([part, part[:1].expand_as(part)]) for part in batch]
        more[2] = torch.cat([batch[2], torch.zeros_like(batch[2])])
        found: list[tuple[Tensors, Tensors]] = []
        for x, labels, weight in (batch, more):
            params, fixed, buffers = (
                {name: value[0].clone() for name, value in part.items()}
                for part in (self.params, self.fixed, self.buffers)
            )
            grads = self._one(params, fixed, buffers, x, labels, weight)[1]
            state, given = {**fixed, **buffers, **params}, Tensors()
            if self._updates:
                given = self._call(self.called.after, state, x, labels, weight)
            found.append((grads, {name: value.float() for name, value in given.items()}))
        (grads, given), (other_grads, other) = found
        largest = max(float(value.abs().max()) for value in grads.values())
        for what, own, others in (
            ("the gradient of", grads, other_grads),
            ("after_step's", given, other),
        ):
            for name, value in own.items():
                apart = float((value - others[name]).abs().max())
                size = largest if own is grads else float(value.abs().max())
                if apart > PADDING * max(size, PADDING):
                    raise PaddingError(
                        f"method '{self.called.method.name}': images of weight 0, which fill up a "
                        f"batch, move {what} '{place(name)}' by {apart:.2g}. Take means over the "
                        "batch by `batch.mean`; or override `loss` without `pads = True`, which "
                        "gets no padding"
                    )

    def _update(self, batch: Batched) -> None:
        """What `after_step` gives, for every cell."""

        def after(params: Tensors, fixed: Tensors, buffers: Tensors, *args: Tensor) -> Tensors:
            given: Tensors = self._call(self.called.after, {**fixed, **buffers, **params}, *args)
            # A copy: one buffer may get what another one held.
            return {name: value.clone() for name, value in given.items()}

        given = self._each(after, batch)
        names = tuple(sorted(given))
        if self.changing and names != self.changing:
            raise ValueError(
                f"after_step of method '{self.called.method.name}' gave {names}, and "
                f"{self.changing} before; it gives the same buffers after every step"
            )
        self.changing = names
        for name, value in given.items():
            self._held(name).copy_(value)

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
            out: Any = self._call(self.called.losses, state, x, labels, weight)
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
        combined: Tensors = self._call(self.called.combined, {**fixed, **buffers, **params}, each)
        return torch.stack(values).sum(), combined, right

    def _each(self, work: Callable[..., Any], batch: Batched) -> Any:
        """`work` of every cell: of parameters, frozen ones, buffers, and its batch."""
        stacked = (self.params, self.fixed, self.buffers, *batch)
        if self._vectorised:
            return vmap(work, randomness="error")(*stacked)
        return tree_map(lambda v: v[None], work(*tree_map(lambda v: v[0], stacked)))
