"""Where things of a script or notebook come from: namespace, module, definition."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from vipbench.plugins.closure import is_own
from vipbench.plugins.live_source import NoSourceError, own_functions, source_of

# What a name means that has no meaning, or one of Python's own.
NOWHERE = object()


def looked_up(space: Mapping[str, Any], name: str) -> Any:
    """What a global name means; NOWHERE for Python's own and for those without a meaning."""
    return space.get(name, NOWHERE)


def namespace(value: Any) -> Mapping[str, Any]:
    """The globals of a class's or function's code."""
    functions: Iterator[FunctionType]
    if isinstance(value, type):
        functions = own_functions(value)
    else:
        found = inspect.unwrap(value) if callable(value) else value
        functions = iter([found] if isinstance(found, FunctionType) else _inside(value))
    first = next(functions, None)
    if first is not None:
        return first.__globals__
    return vars(sys.modules.get(getattr(value, "__module__", None) or "__main__", builtins))


def is_own_definition(value: Any) -> bool:
    """Whether a class or function was defined by the user, see `is_own`."""
    name = getattr(value, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None and isinstance(value, type) and name in ("builtins", None):
        return False
    return is_own(module)


def decorated(value: Any, name: str) -> FunctionType | None:
    """The function that a definition of `name` began with: itself, or what its decorators hold."""
    if isinstance(value, FunctionType) and value.__code__.co_name == name:
        return value
    inner = inspect.unwrap(value) if callable(value) else value
    candidates = [inner] if isinstance(inner, FunctionType) else []
    candidates += _inside(value)
    for one in candidates:
        if one.__code__.co_name == name and one is not value and is_own_definition(one):
            try:
                if source_of(one).decorated:
                    return one
            except NoSourceError:
                continue
    return value if isinstance(value, FunctionType) else None


def _inside(value: Any, depth: int = 0) -> Iterator[FunctionType]:
    """The functions that a decorator's result holds."""
    held: list[Any] = []
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:
                continue
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        held = list(vars(value).values())
    for one in held:
        if isinstance(one, FunctionType):
            yield one
        if depth < 3 and callable(one):
            yield from _inside(one, depth + 1)


def importable(value: Any, name: str) -> tuple[ModuleType, str] | None:
    """The module, a script or notebook apart, where `value` is found, and its name there."""
    own = getattr(value, "__module__", None)
    given = [getattr(value, key, None) for key in ("__qualname__", "__name__", "_name")]
    paths = [path for path in given if isinstance(path, str)]
    module = sys.modules.get(own) if isinstance(own, str) else None
    for path in [*paths, name]:
        if module is not None and own != "__main__" and _at(module, path) is value:
            return module, path
    names = [n for n in dict.fromkeys([name, *paths]) if n.isidentifier()]
    found = [
        (other, path)
        for other_name, other in list(sys.modules.items())
        if isinstance(other, ModuleType) and other_name == other.__name__ != "__main__"
        for path in names
        if vars(other).get(path) is value and not other_name.startswith("vipbench_plugin_")
    ]
    # The most public place first; which local modules are loaded does not matter.
    return min(
        found,
        key=lambda pair: (
            is_own(pair[0]),
            any(part.startswith("_") for part in pair[0].__name__.split(".")),
            pair[0].__name__.count("."),
            len(pair[0].__name__),
            pair[0].__name__,
            pair[1],
        ),
        default=None,
    )


def _at(module: ModuleType, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = inspect.getattr_static(found, part, NOWHERE)
    return found
