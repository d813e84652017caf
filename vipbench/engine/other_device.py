"""The rule of `vipbench check` that finds tensors of the wrong device, on a machine without a GPU.

Every tensor is on the CPU, and its storage is labelled: on the device (`DEVICE` stands for it) or
in the CPU's memory. The labels follow each operation as a GPU's tensors would: what a method makes
without saying on which device is in the CPU's memory, and an operation that takes from both is the
error that CUDA would raise. Values stay real, so that code that reads them runs on. PyTorch's
FakeTensorMode has no values, and its CUDA tensors no backward pass without a GPU.

It sees no branch on `device.type == "cuda"`: the device's type is "cpu".
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vipbench.api import ImageBackbone, Method
from vipbench.engine.guard import Weights

# PyTorch keeps it apart from "cpu", and computes on the CPU.
DEVICE = torch.device("cpu", 0)

# What may take indices or values from the CPU's memory on CUDA.
_MAY_MIX = frozenset({"copy_", "index", "index_put", "index_put_", "_index_put_impl_", "set_"})
_DEVICE_OF: Any = Tensor.device.__get__
_MOVES = frozenset({Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as})
# Their tensors lie in the CPU's memory, also where a number that they take is on the device.
_FACTORIES = frozenset[Any]((torch.full, torch.arange, torch.linspace, torch.logspace))
# CUDA's tensors have no view in NumPy.
_NUMPY = frozenset[Any]((Tensor.numpy, Tensor.__array__))
_LEAVES = frozenset[Any]((Tensor.cpu, Tensor.tolist, *_NUMPY))
# Beside those on each element, they take a number of the CPU's as a constant.
_TAKE_NUMBERS = frozenset({"fill", "floor_divide", "index_fill", "masked_fill", "mse_loss", "rsub"})
_GENERATOR = torch.Generator
_ENGINE = "_engine_run_backward"
_BACKWARD = getattr(torch.autograd, _ENGINE)
# They look at an error code.
_SOLVERS = ("_linalg", "cholesky", "linalg_inv", "linalg_lu", "linalg_solve", "linalg_eig")


# Of a storage's address whether it is on the device, for the process: towers keep masks by device.
# A weak reference keeps the address from being given to another storage.
_LABELS: dict[int, tuple[bool, StorageWeakRef]] = {}


class DeviceError(RuntimeError):
    """A tensor is not on the device where it is needed."""


class Labels:
    """Which storages are on the device.

    known: the label of a storage that nobody labelled. strict: also refuse what a CUDA graph cannot
    hold: operations that wait for a result, take from the CPU's memory or draw random numbers.
    problem: the first error; code that is checked may swallow the exception. seen: operations.
    """

    def __init__(self, known: bool = False, strict: bool = False) -> None:
        self.known, self.strict = known, strict
        self.problem: DeviceError | None = None
        self.seen = 0
        # Where what is made just now is to be, None where its inputs decide; and where the tensors
        # are that Python gave a function, whose parts may make tensors from their sizes alone.
        self.target: bool | None = None
        self.implied = False
        # Whether the generator that Python gave is of the device.
        self.draws = False
        for place in [place for place, (_, storage) in _LABELS.items() if storage.expired()]:
            del _LABELS[place]

    def set(self, values: Iterable[Any], on_device: bool) -> None:
        """Label tensors among `values`."""
        for value in values:
            inner = _inner(value) if isinstance(value, Tensor) else None
            if inner is not None and inner.layout == torch.strided:
                storage = inner.untyped_storage()
                weak: Any = StorageWeakRef
                _LABELS[storage._cdata] = on_device, weak(storage)

    def on_device(self, value: Tensor) -> bool:
        """The label of a tensor."""
        found = _LABELS.get(_place(value))
        return self.known if found is None else found[0]

    def refuse(self, what: str) -> None:
        """Raises DeviceError, naming phase and line."""
        error = DeviceError(f"{_where()}: {what}")
        self.problem = self.problem or error
        raise error


class _Generator(torch.Generator):
    """What `torch.Generator` makes in the block: one of the device knows it."""

    def __init__(self, device: Any = "cpu") -> None:
        # `__new__` has made it.
        self.on_device = torch.device(device) == DEVICE

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it draws."""
        return DEVICE if self.on_device else torch.device("cpu")


class _Operations(TorchDispatchMode):
    def __init__(self, labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = labels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        labels, kwargs = self.labels, kwargs or {}
        labels.seen += 1
        given = [*_tensors(args), *_tensors(kwargs.values())]
        name = func.overloadpacket.__name__
        device, host = list[Tensor](), list[Tensor]()
        for value in given:
            (device if labels.on_device(value) else host).append(value)
        lifted = name in ("lift_fresh", "lift")
        if device and not lifted:
            self._check(func, name, args, kwargs, device, host)
        drawn = any(isinstance(value, _GENERATOR) for value in (*args, *kwargs.values()))
        on_device = bool(device) or (not given and labels.implied)
        if labels.target is not None:
            on_device = labels.target
        elif lifted:  # from values of Python
            on_device = False
        if drawn and on_device != labels.draws:
            where, whose = ("on the device", "CPU") if on_device else ("on the CPU", "device")
            labels.refuse(
                f"{_op(func)} draws {where} with a generator of the {whose}; draw on the CPU, "
                "then `.to(device)`"
            )
        # Attention would draw for its dropout, which is 0.
        draws = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name
        if labels.strict and draws and on_device:
            labels.refuse(f"{_op(func)} draws random numbers")
        out = func(*args, **kwargs)
        # What shares a storage with an input has its label.
        places = set() if lifted else {_place(value) for value in given}
        labels.set((v for v in _tensors((out,)) if _place(v) not in places), on_device)
        return out

    def _check(
        self, func: Any, name: str, args: Any, kwargs: Any, device: list[Tensor], host: list[Tensor]
    ) -> None:
        labels = self.labels
        if labels.strict and waits(func, name, args, kwargs):
            labels.refuse(f"{_op(func)} waits for the device")
        # A number of the CPU's may enter as a constant; nothing on the CPU may be written.
        listed = name.rstrip("_") in _TAKE_NUMBERS or name.startswith("_foreach")
        if listed or torch.Tag.pointwise in func.tags:
            every = [(a, kwargs.get(a.name)) for a in func._schema.arguments]
            every[: len(args)] = [(a, v) for (a, _), v in zip(every, args, strict=False)]
            written = {
                _place(value)
                for argument, given in every
                if argument.alias_info is not None and argument.alias_info.is_write
                for value in _tensors([given])
            }
            apart = [value for value in host if value.dim() or _place(value) in written]
        else:
            apart = host
        if labels.strict and name == "copy_":
            apart = host
        elif not labels.strict and name in _MAY_MIX:
            first = args[0] if name != "copy_" else None
            # Indices may come from anywhere, what is indexed and the values not.
            apart = [] if first is None or labels.on_device(first) else [first]
            if len(args) > 2 and name.startswith(("index_put", "_index_put")):
                apart += [args[2]] if args[2].dim() and not labels.on_device(args[2]) else []
        if apart:
            one, other = tuple(device[0].shape), tuple(apart[0].shape)
            labels.refuse(
                f"{_op(func)} takes a tensor {one} on the device and one {other} in the CPU's "
                "memory; make it with `device=x.device` or `device=task.device`, or move it "
                "with `.to(x.device)`"
            )


class _Calls(TorchFunctionMode):
    # Sees what Python asks for: in an operation itself every device has been filled in.
    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        labels, kwargs = self.labels, kwargs or {}
        if isinstance(func, torch._ops.OpOverload):  # another mode hands on an operation
            return func(*args, **kwargs)
        if func == _DEVICE_OF:
            return DEVICE if labels.on_device(args[0]) else torch.device("cpu")
        if func is Tensor.cuda:
            labels.refuse("`.cuda()` names a device; move tensors with `.to(task.device)`")
        device = _device_of(func, args, kwargs, labels)
        if labels.strict and (func in _LEAVES or (func is Tensor.to and device is False)):
            labels.refuse(f"{_op(func)} waits for the device")
        if func in _NUMPY and labels.on_device(args[0]):
            labels.refuse(
                f"a tensor {tuple(args[0].shape)} on the device has no view in NumPy; take "
                "`.cpu().numpy()`"
            )
        if func is Tensor.__deepcopy__:  # copies the storage
            out = self._call(func, args, kwargs, None)
            labels.set([out], labels.on_device(args[0]))
            return out
        if func in _MOVES and device is not None and device != labels.on_device(args[0]):
            if labels.strict and device and args[0].dim():
                labels.refuse(f"{_op(func)} takes from the CPU's memory")
            out = self._call(func, args, kwargs, None)
            out = out.clone() if out is args[0] or out._is_view() else out
            labels.set([out], device)
            return out
        return self._call(func, args, kwargs, None if func in _MOVES else device)

    def _call(self, func: Any, args: Any, kwargs: Any, target: bool | None) -> Any:
        labels = self.labels
        before = labels.target, labels.implied, labels.draws
        labels.draws = any(
            isinstance(v, _Generator) and v.on_device for v in (*args, *kwargs.values())
        )
        labels.target = before[0] if target is None else target
        labels.implied = any(
            labels.on_device(v) for part in (args, kwargs.values()) for v in _tensors(part)
        )
        try:
            return func(*args, **kwargs)
        finally:
            labels.target, labels.implied, labels.draws = before


def _device_of(func: Any, args: Any, kwargs: Any, labels: Labels) -> bool | None:
    """Whether a call asks for the device, or for the CPU; None where it says nothing."""
    if func is Tensor.cpu:
        return False
    named = kwargs.get("device")
    if named is None and (func in _FACTORIES or func is Tensor.new_tensor):
        return func is Tensor.new_tensor and labels.on_device(args[0])
    if func in (Tensor.to, Tensor.type_as) and named is None:
        first = args[1] if len(args) > 1 else kwargs.get("other")
        if isinstance(first, Tensor):
            return labels.on_device(first)
        named = first if isinstance(first, str | torch.device) else None
    if named is None:
        return None
    asked = torch.device(named)
    if asked.type not in ("cpu", "meta"):
        labels.refuse(f"{_op(func)} names the device '{asked}'; take `task.device`")
    return asked == DEVICE


@contextmanager
def another_device(towers: Iterable[ImageBackbone], labels: Labels) -> Iterator[Labels]:
    """In the block `towers` are on a device that is not the CPU; `labels.problem` is the first
    mistake."""
    for tower in towers:
        labels.set(Weights(tower).tensors.values(), True)
    with watched(labels), patch.object(torch, "Generator", _Generator):
        yield labels


@contextmanager
def watched(labels: Labels) -> Iterator[None]:
    """In the block operations follow `labels`."""
    with ExitStack() as stack:
        stack.enter_context(_Operations(labels))
        calls = stack.enter_context(_Calls(labels))

        def backward(*args: Any, **kwargs: Any) -> Any:
            # PyTorch suspends `calls` while a function that it intercepts runs.
            with calls:
                return _BACKWARD(*args, **kwargs)

        stack.enter_context(patch.object(torch.autograd, _ENGINE, backward))
        yield


def waits(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operation on a GPU's tensors ends only when its result is known."""
    if name in ("index", "index_put", "index_put_", "_unsafe_index"):
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        return any(x.dtype in (torch.bool, torch.uint8) for x in indices)
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags) or name.startswith(_SOLVERS)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among `values` and in their lists, tuples and mappings. PyTorch's own `tree_leaves`
    takes most of the time of a small operation."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _inner(value: Tensor) -> Tensor:
    """The tensor inside those of torch.func; of a sparse one its indices."""
    functorch: Any = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
    if value.layout == torch.sparse_coo:
        return value._indices()
    return value.crow_indices() if value.layout == torch.sparse_csr else value


def _place(value: Tensor) -> int:
    """The address of a tensor's storage; 0 where it has none, as sparse tensors."""
    value = _inner(value)
    return value.untyped_storage()._cdata if value.layout == torch.strided else 0


def _op(func: Any) -> str:
    packet = getattr(func, "overloadpacket", func)
    return f"`{getattr(packet, '__name__', packet)}`"


# The calls of a method, as the rule's messages name them.
_PHASES = {
    "__init__": "building",
    **{
        name: name
        for name in (
            "noise",
            "prepare",
            "forward",
            "loss",
            "combine",
            "after_step",
            "fit",
            "finish",
            "predict",
        )
    },
}


def _where() -> str:
    """Which call of the method runs, and its innermost line in the method's or a helper's file."""
    stack: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    library, package = Path(torch.__file__).parent, Path(__file__).parents[1]
    phase, line = "", ""
    for frame in reversed(stack):
        code = frame.f_code
        file = Path(code.co_filename)
        if file.is_relative_to(library):
            continue
        if not phase and isinstance(frame.f_locals.get("self"), Method):
            phase = _PHASES.get(code.co_name, "")
        foreign = not file.is_relative_to(package) or file.parent.name == "methods"
        if phase and foreign and not code.co_filename.startswith("<"):
            line = f", {file.name} line {frame.f_lineno}"
    return f"in {phase}{line}" if phase else "in the backward pass"
