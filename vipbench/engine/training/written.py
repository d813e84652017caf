"""Finding what a method writes in a training step, where nothing but `after_step` may.

One method object serves all cells that train together, and its tensors are put in place for the
length of a call. An attribute, or a global variable of the method's module, that is set there is
one value for all cells; a buffer that is set there is lost. Both would give wrong numbers without
an error.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import CellType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from vipbench.api import Method
from vipbench.plugins.files import local_modules

# How deep into containers, and up to how many items of one, changes are looked for.
DEPTH, MOST = 4, 1000
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class WrittenStateError(RuntimeError):
    """A method wrote an attribute or a buffer in a training step."""


def refuse_batch_norm(method: Method) -> None:
    """Raises WrittenStateError where a layer of `method` keeps statistics of the batches it saw.
    A method that trains a tower may: its cells are trained one by one, statistics with them."""
    if method.trains_towers:
        return
    for name, module in method.named_modules():
        if isinstance(module, _BATCH_NORM):
            raise WrittenStateError(
                f"method '{method.name}': 'self.{name}' is an nn.{type(module).__name__}, which "
                "writes its running statistics in each training step. Keep mean and variance as "
                "buffers, normalise with them or with the batch, `F.batch_norm(x, self.mean, "
                "self.var)`, and return their new values from `after_step`, which finds the batch "
                "in `self.last_batch`; or train in a `fit` of the method's own"
            )


@contextmanager
def unwritten(method: Method) -> Iterator[None]:
    """Raises WrittenStateError where the block, which runs a method's code, changes what the
    method or its module holds. Parameters that the engine trains may be written in place."""
    before = _state(method)
    yield
    after = _state(method)
    # As items of tuples a NaN equals itself.
    names = [n for n in {**before, **after} if (before.get(n),) != (after.get(n),)]
    if names:
        raise _refused(method, names)


def rehearse(
    method: Method,
    work: Callable[[dict[str, Tensor]], object],
    state: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
) -> None:
    """Do `work` once on copies of one cell's `state`, frozen parameters and buffers, and of its
    `trained` parameters. Raises WrittenStateError where it changes the values of the former, or
    gives one of the latter other memory (`.data = …`): layers of PyTorch do so out of sight of
    torch.func, which refuses other writes without naming the tensor."""
    copies = {name: value.clone() for name, value in (*state.items(), *trained.items())}
    memory = {name: copies[name].data_ptr() for name in trained}
    try:
        work(copies)
    except WrittenStateError:
        raise
    except Exception:  # what else is wrong the step itself will tell
        pass
    names = [name for name, value in state.items() if _differ(copies[name], value)]
    if names:
        raise _refused(method, [place(name) for name in names])
    moved = [name for name, at in memory.items() if copies[name].data_ptr() != at]
    if moved:
        where = place(moved[0])
        raise WrittenStateError(
            f"method '{method.name}' replaces the memory of '{where}' in a training step (`.data = "
            "…`, `set_` or `resize_`). It is a parameter, stacked with those of other cells: write "
            f"its values in place, `with torch.no_grad(): {where}.copy_(...)`. What is no "
            "parameter is a buffer that gets its new value from `after_step`"
        )


def place(name: str) -> str:
    """A tensor of a method by the name that its code has for it."""
    return f"self.{name.removeprefix('method.')}"


def _differ(a: Tensor, b: Tensor) -> bool:
    return not bool(((a == b) | ((a != a) & (b != b))).all())


def _refused(method: Method, names: list[str]) -> WrittenStateError:
    written = ", ".join(f"'{name}'" for name in names[:4])
    first = names[0].rpartition(" ")[2].rpartition(".")[2]
    return WrittenStateError(
        f"method '{method.name}' writes {written} in a training step. Nothing is kept there: cells "
        "that train together share the method's attributes, and its buffers are put in place for "
        f"the length of a call. Make it a buffer before training, and return its new value from "
        f"`after_step(self)`, as {{'{first}': ...}}; or train in a `fit` of the method's own"
    )


class _Unchanged:
    """Equal where it is the same object, and a tensor not written since."""

    def __init__(self, value: object, version: bool = True) -> None:
        self.value = value
        counted = version and isinstance(value, Tensor) and not value.is_inference()
        self.version = value._version if counted else 0  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Unchanged):
            return False
        return self.value is other.value and self.version == other.version

    __hash__ = None  # type: ignore[assignment]  # compared alone


BUILTIN = "vipbench."
_NO_TASK = SimpleNamespace()
_OWN = frozenset(nn.Module().__dict__) - {"training"} | {"task", "last_batch"}


@lru_cache(maxsize=8192)
def _resolved(file: str) -> str:
    return str(Path(file).resolve())


@lru_cache(maxsize=64)
def _code(method: type[Method], imported: int) -> Mapping[str, str]:
    """The modules of a method's code, with those that a user's plugin imports from its own files,
    and what a message has before the name of a global variable of each. imported: how many
    modules there are; a method may import one later."""
    owners = method.__mro__[: method.__mro__.index(Method)]
    # Of a class that was made by calling `type` it is "abc".
    names = {owner.__module__ for owner in owners} - sys.stdlib_module_names
    files = {name: getattr(sys.modules.get(name), "__file__", None) or "" for name in names}
    theirs = [Path(file) for name, file in files.items() if file and not name.startswith(BUILTIN)]
    helpers = {str(helper) for file in theirs for helper in local_modules(file)}
    for name, module in list(sys.modules.items()) if helpers else ():
        file = getattr(module, "__file__", None)
        if name not in files and file and _resolved(file) in helpers:
            files[name] = file
    paths = {name: Path(file) for name, file in files.items() if file}
    return {
        # Of a package's file the name alone would not tell which package it is.
        name: f"{'/'.join(paths[name].parts[-1 - (paths[name].stem == '__init__') :])}: "
        if name in paths and not name.startswith(BUILTIN)
        else f"{name}."
        for name in files
    }


def _state(method: Method) -> dict[str, Any]:
    """What a method holds, by name."""
    found: dict[str, Any] = {}
    owners = type(method).__mro__[: type(method).__mro__.index(Method)]
    code = _code(type(method), len(sys.modules))
    own = code.keys()
    for inside, module in method.named_modules():
        prefix = f"self.{inside}." if inside else "self."
        # Layers of a tower that is trained do as they like; it is trained alone.
        tower = bool(inside) and method.trains_towers
        for name, parameter in module._parameters.items():
            found[prefix + name] = _Unchanged(parameter, version=False)
        for name, buffer in module._buffers.items():
            found[prefix + name] = _Unchanged(buffer, version=not tower)
        if not tower:
            for name, value in vars(module).items():
                if name not in _OWN:
                    found[prefix + name] = _content(value, own, 0)
    for name, value in vars(method).get("task", _NO_TASK).__dict__.items():
        found[f"self.task.{name}"] = _Unchanged(value)
    for owner in owners:
        found |= _globals(vars(owner), f"{owner.__name__}.", own)
    for module_name in own & sys.modules.keys():
        found |= _globals(vars(sys.modules[module_name]), code[module_name], own)
    return found


def _globals(held: Mapping[str, Any], prefix: str, own: Set[str]) -> dict[str, Any]:
    """What a class or a module holds, by name; of code, what it keeps from call to call."""
    return {
        f"{prefix}{name}": _content(value, own, 0)
        for name, value in held.items()
        if not name.startswith("__") and (not callable(value) or _has_own_state(value))
    }


def _has_own_state(value: object) -> bool:
    """Whether it is a function with a state of its own."""
    return isinstance(value, FunctionType) and bool(
        value.__closure__ or value.__defaults__ or value.__kwdefaults__ or value.__dict__
    )


def _content(value: Any, own: Set[str], depth: int) -> Any:
    """What compares unequal once `value` was replaced or changed. own: the modules whose objects
    are looked into; those of libraries may hold caches."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray):
        return _Unchanged(value), value.tobytes() if value.nbytes <= 1 << 20 else None
    if isinstance(value, itertools.count):
        return _Unchanged(value), repr(value)
    if depth < DEPTH:
        deeper = depth + 1
        if isinstance(value, list | tuple | set | frozenset | deque):
            inner = [_content(v, own, deeper) for v in value] if len(value) <= MOST else None
            return _Unchanged(value), len(value), inner
        if isinstance(value, dict):
            items = value.items() if len(value) <= MOST else ()
            inner = [(_Unchanged(k), _content(v, own, deeper)) for k, v in items]
            return _Unchanged(value), len(value), inner
        if isinstance(value, FunctionType) and value.__module__ in own:
            cells = [cell.cell_contents for cell in value.__closure__ or () if _has_value(cell)]
            kept = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *cells]
            kept.append(vars(value))
            return _Unchanged(value), [_content(v, own, deeper) for v in kept]
        if isinstance(value, nn.Module):  # a module that the method hides from its own modules
            inner = [_Unchanged(v) for v in (*value.buffers(), *value.parameters())]
            return _Unchanged(value), inner, [_Unchanged(v) for v in vars(value).values()]
        mine = type(value).__module__ in own or isinstance(value, SimpleNamespace)
        if mine and not isinstance(value, type):
            slots = [n for t in type(value).__mro__ for n in getattr(t, "__slots__", ())]
            held = {n: getattr(value, n) for n in slots if hasattr(value, n)}
            held |= getattr(value, "__dict__", {})
            return _Unchanged(value), [(k, _content(v, own, deeper)) for k, v in held.items()]
    return _Unchanged(value)


def _has_value(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a name that has no value yet
        return False
