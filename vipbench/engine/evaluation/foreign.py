"""Finds models that a method loads itself: neither its key nor its record would name them.

`HParams.backbones()` is the way to read another backbone. Refused is a method that loads or holds a
backbone of its own, or that builds, holds or calls a network with two or more weight matrices that
are not trained, other than the task's towers, copies of what it trains, and layers that
`Task.linear` drew; or that holds more than MOST_TENSORS frozen matrices with no side as long as a
size of its cell.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_pre_hook,
    register_module_parameter_registration_hook,
)

from vipbench.api import ImageBackbone, Method, has_own_fit
from vipbench.engine.guard import digest
from vipbench.plugins import registry

# How deep into a method's own objects models are looked for.
DEPTH = 6
# A network has this many weight matrices or more; fewer are a projection.
FEWEST_MATRICES = 2
MOST_TENSORS = 4
_LISTS = (nn.ParameterList, nn.ParameterDict)


class ForeignModelError(RuntimeError):
    """A method builds, loads or holds a model that is not the task's."""


class Models:
    """The networks that a group's methods built and called."""

    def __init__(self) -> None:
        self._built: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._called: dict[int, nn.Module] = {}
        self._with_gradients: set[int] = set()
        # Called in training, without gradients.
        self._without: set[int] = set()
        self._training = False

    @contextmanager
    def watch(self, who: str, training: bool = False) -> Iterator[None]:
        """Around a method's own code. Raises ForeignModelError where it loads a backbone."""

        def refuse(source: str) -> None:
            raise ForeignModelError(_message(who, f"loads the backbone '{source}'", source))

        hooks = [
            register_module_parameter_registration_hook(self._register),
            register_module_forward_pre_hook(self._call),
        ]
        registry.LOADING.append(refuse)
        self._training = training
        try:
            yield
        finally:
            registry.LOADING.remove(refuse)
            for hook in hooks:
                hook.remove()

    def _register(self, module: nn.Module, name: str, value: nn.Parameter) -> None:
        self._built.add(module)

    def _call(self, module: nn.Module, args: object) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            # Its parts are called out of sight.
            self._called.update((id(part), part) for part in module.modules())
        if not module._parameters:
            return
        self._called[id(module)] = module
        if torch.is_grad_enabled():
            self._with_gradients.add(id(module))
        elif self._training:
            self._without.add(id(module))

    def check(self, methods: Sequence[Method], own: Sequence[ImageBackbone], trains: bool) -> None:
        """Raises ForeignModelError, saying what was found. methods: all of the group, of one class.
        own: the backbones that they may use. trains: whether the engine trains them."""
        fits = has_own_fit(type(methods[0]))
        who = f"method '{methods[0].name}'"
        held: dict[int, str] = {}
        every: dict[int, tuple[nn.Module, str]] = {}
        for method in methods:
            for name, module in method.named_modules():
                held[id(module)] = name
                every[id(module)] = (module, f"'self.{name}'")
            for place, value in _objects(method):
                if isinstance(value, ImageBackbone) and all(value is not one for one in own):
                    what = f"holds the backbone '{value.name}' in '{place}'"
                    raise ForeignModelError(_message(who, what, value.name))
                if isinstance(value, nn.Module):
                    for module in value.modules():
                        every.setdefault(id(module), (module, f"'{place}'"))
            self._check_tensors(method)
        theirs = {
            id(module)
            for one in own
            for _, value in _objects(one)
            if isinstance(value, nn.Module)
            for module in value.modules()
        }
        if any(id(module) not in {*every, *theirs} for module in list(self._built)):
            gc.collect()  # what was built and thrown away is not used
        for module in (*self._called.values(), *self._built):
            every.setdefault(id(module), (module, "in its code"))
        # By place, as each of the group's cells may hold one; by matrix where no cell holds it.
        frozen: dict[object, tuple[str, Tensor]] = {}
        learned: set[tuple[int, ...]] = set()
        for key, (module, place) in every.items():
            if key in theirs or "drawn_by_task" in vars(module):
                continue
            learns = key in self._with_gradients if fits and key not in held else key in held
            learns &= trains or fits
            learns &= key not in self._without or key in self._with_gradients
            for name, value in module.named_parameters(recurse=False):
                if learns and value.requires_grad:
                    learned.add(tuple(value.shape))
                elif value.dim() >= 2 and not isinstance(module, _LISTS) and held.get(key) != "":
                    same = (place, name) if key in held else id(value)
                    frozen[same] = (place, value.detach())
        left = [(p, value) for p, value in frozen.values() if tuple(value.shape) not in learned]
        if len(left) >= FEWEST_MATRICES:
            known = {digest(value) for one in own for value in _weights(one)}
            left = [(place, value) for place, value in left if digest(value) not in known]
        if len(left) >= FEWEST_MATRICES:
            what = f"uses a network with {len(left)} weight matrices that are not trained"
            raise ForeignModelError(_message(who, f"{what} ({left[0][0]})"))

    def _check_tensors(self, method: Method) -> None:
        task = method.task
        sizes = {*task.dims, sum(task.dims), task.n_classes, task.info.width, task.info.n_support}
        loose: dict[int, str] = {}
        lone = [
            (f"self.{name}", value)
            for place, module in method.named_modules()
            if module is method or isinstance(module, _LISTS)
            for name, value in module.named_parameters(place, recurse=False)
        ]
        for place, value in (*_objects(method), *lone):
            if not isinstance(value, Tensor) or value.requires_grad or value.dim() < 2:
                continue
            if not sizes & {*value.shape, math.prod(value.shape[:-1])} and min(value.shape) > 1:
                loose[id(value)] = place
        if len(loose) > MOST_TENSORS:
            first = next(iter(loose.values()))
            what = f"holds {len(loose)} frozen matrices of sizes foreign to its cell ('{first}')"
            raise ForeignModelError(_message(f"method '{method.name}'", what))


def _message(who: str, what: str, name: str = "NAME") -> str:
    return (
        f"{who} {what}, which neither its key nor its record would name. Return its name from "
        f"`HParams.backbones()`, for instance ('{name}',): x then holds the features of all "
        "backbones side by side, and `x.split(self.task.dims, -1)` takes them apart"
    )


def _weights(backbone: ImageBackbone) -> Iterable[Tensor]:
    for _, value in _objects(backbone):
        if isinstance(value, nn.Module):
            yield from (p.detach() for p in value.parameters() if p.dim() >= 2)
        elif isinstance(value, Tensor) and value.dim() >= 2:
            yield value.detach()


def _objects(root: object) -> list[tuple[str, object]]:
    """The backbones, modules and tensors that hang on a method or a backbone, by place; a method's
    task is left out, and the backbones are added that its code reads as globals."""
    found: list[tuple[str, object]] = []
    seen: set[int] = {id(root)}

    def walk(value: object, place: str, depth: int) -> None:
        if depth > DEPTH or id(value) in seen or isinstance(value, type):
            return
        seen.add(id(value))
        if isinstance(value, Tensor | ImageBackbone):
            found.append((place, value))
        elif isinstance(value, nn.Module):
            found.append((place, value))
            # Its submodules are in `modules()`; what it hides from there is looked for.
            for key, item in list(vars(value).items()):
                if not key.startswith("_"):
                    walk(item, f"{place}.{key}", depth + 1)
        elif isinstance(value, Mapping):
            for key, item in list(value.items()):
                walk(item, f"{place}[{key!r}]", depth + 1)
        elif isinstance(value, list | tuple | set):
            for i, item in enumerate(value):
                walk(item, f"{place}[{i}]", depth + 1)
        elif getattr(value, "__dict__", None) and not isinstance(value, type(sys)):
            for key, item in list(vars(value).items()):
                walk(item, f"{place}.{key}", depth + 1)

    inner = ("_parameters", "_modules", "_non_persistent_buffers_set")
    for name, value in list(vars(root).items()):
        if isinstance(root, Method) and (name in ("task", "hparams", *inner)):
            continue
        walk(value, f"self.{name}".replace("self._buffers", "self"), 0)
    if isinstance(root, Method):
        file = sys.modules.get(type(root).__module__)
        for name in _read_names(type(root)) if file is not None else ():
            value = vars(file).get(name)
            if isinstance(value, ImageBackbone):
                found.append((name, value))
    return found


def _read_names(method: type[Method]) -> set[str]:
    """The global names that the code of a method's own file reads."""
    codes: list[CodeType] = []
    for owner in method.__mro__:
        if owner.__module__ == method.__module__:
            own = [getattr(item, "__func__", item) for item in vars(owner).values()]
            codes += [item.__code__ for item in own if isinstance(item, FunctionType)]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [item for item in code.co_consts if isinstance(item, CodeType)]
    return names
